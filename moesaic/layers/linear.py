"""Projections. Each holds its weights as `[out, in]` and speaks to the group of ranks that share it."""

from collections.abc import Mapping

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews, gate_and_up, rows_of


class ReplicatedLinear(Layer):
    """A projection that every rank holds whole."""

    def __init__(self, ctx: BuildContext, in_size: int, out_size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = ctx.matrix("weight", out_size, in_size)
        self.bias = ctx.parameter(out_size) if bias else None
        self._linear = ctx.kernel("linear")
        self.out_size = out_size

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        out: Tensor = self._linear(x, self.weight, self.bias)
        return out

    def named_views(self) -> NamedViews:
        yield "weight", rows_of(self.weight, 0, self.out_size)
        if self.bias is not None:
            yield "bias", self.bias.data


class RowLinear(ReplicatedLinear):
    """A projection whose input is split over the ranks; their partial results are summed."""

    def __init__(self, ctx: BuildContext, in_size: int, out_size: int, bias: bool = False) -> None:
        super().__init__(ctx, in_size, out_size, bias)
        self.group = ctx.group

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return self.group.all_reduce(self._linear(x, self.weight, self.bias))


class MergedLinear(Layer):
    """Several projections of the same input as one product; each rank would hold some rows of each.

    Args:
        parts: name -> output size; canonical names are `{part}.weight`, and each is some rows of one matrix.
    """

    def __init__(
        self, ctx: BuildContext, in_size: int, parts: Mapping[str, int], bias: bool = False, gated: bool = False
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        size = sum(parts.values())
        self.weight = ctx.matrix(f"{next(iter(parts))}.weight", size, in_size, gated)  # the first speaks for all
        self.bias = ctx.parameter(size) if bias else None

    def named_views(self) -> NamedViews:
        start = 0
        for part, size in self.parts.items():
            yield f"{part}.weight", rows_of(self.weight, start, start + size)
            if self.bias is not None:
                yield f"{part}.bias", self.bias.data[start : start + size]
            start += size


class MergedColumnLinear(MergedLinear):
    """Projections of the same input, side by side."""

    def __init__(self, ctx: BuildContext, in_size: int, parts: Mapping[str, int], bias: bool = False) -> None:
        super().__init__(ctx, in_size, parts, bias)
        self._linear = ctx.kernel("linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, sum of parts]`, parts side by side in order."""
        out: Tensor = self._linear(x, self.weight, self.bias)
        return out


class ActivatedLinear(MergedLinear):
    """act(x W^T + bias)."""

    def __init__(
        self, ctx: BuildContext, in_size: int, parts: Mapping[str, int], activation: str, bias: bool = False
    ) -> None:
        super().__init__(ctx, in_size, parts, bias)
        self.activation = activation
        self._activated_linear = ctx.kernel("activated_linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, sum of parts]`."""
        out: Tensor = self._activated_linear(x, self.weight, self.bias, activation=self.activation)
        return out


class GatedLinear(MergedLinear):
    """act(gate(x)) * up(x)."""

    def __init__(self, ctx: BuildContext, in_size: int, out_size: int, activation: str, bias: bool = False) -> None:
        super().__init__(ctx, in_size, {"gate": out_size, "up": out_size}, bias, gated=True)
        self.activation = activation
        self._gated_linear = ctx.kernel("gated_linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        out: Tensor = self._gated_linear(x, self.weight, self.bias, activation=self.activation)
        return out

    def named_views(self) -> NamedViews:
        for part, view in zip(self.parts, gate_and_up(self.weight), strict=True):
            yield f"{part}.weight", view
        if self.bias is not None:
            for part, half in zip(self.parts, self.bias.data.chunk(2), strict=True):
                yield f"{part}.bias", half
