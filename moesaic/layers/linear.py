"""Projections. Each holds its weights as `[out, in]` and speaks to the group of ranks that share it.

All take `prefix` and `linear_method`, by which a hand-written model says which layer this is and how its weights are
kept, or `ctx`, in which the generic decoder says both (`layers.context.context_of`).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from moesaic.kernels.reference_moe import LIMIT
from moesaic.layers.base import BuildContext, Layer, NamedViews, gate_and_up, rows_of
from moesaic.layers.context import LinearMethod, context_of


class ReplicatedLinear(Layer):
    """A projection that every rank holds whole."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = False,
        *,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        super().__init__()
        ctx = context_of(self, ctx, prefix, linear_method)
        self.weight = ctx.matrix("weight", output_size, input_size)
        self.bias = ctx.parameter(output_size) if bias else None
        self.group = ctx.group
        self._linear = ctx.kernel("linear")
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        out: Tensor = self._linear(x, self.weight, self.bias)
        return out

    def named_views(self) -> NamedViews:
        yield "weight", rows_of(self.weight, 0, self.output_size)
        if self.bias is not None:
            yield "bias", self.bias.data


class ColumnParallelLinear(ReplicatedLinear):
    """A projection whose output is split over the ranks: each holds some rows of it."""


class RowParallelLinear(ReplicatedLinear):
    """A projection whose input is split over the ranks; their partial results are summed."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """`[T, in]` -> `[T, out]`; `scale` is of the product, before the bias."""
        return self.group.all_reduce(self._linear(x, self.weight, self.bias, scale=scale))


class MergedColumnParallelLinear(Layer):
    """Several projections of the same input as one product; each rank would hold some rows of each.

    Args:
        output_sizes: name -> output size; canonical names are `{name}.weight`, and each is some rows of one matrix.
            Sizes alone are named by their numbers, from "0" on.
    """

    gated = False

    def __init__(
        self,
        input_size: int,
        output_sizes: Mapping[str, int] | Sequence[int],
        bias: bool = False,
        *,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        super().__init__()
        ctx = context_of(self, ctx, prefix, linear_method)
        named = output_sizes if isinstance(output_sizes, Mapping) else {str(i): n for i, n in enumerate(output_sizes)}
        self.parts: dict[str, int] = dict(named)
        size = sum(self.parts.values())
        first = next(iter(self.parts))  # one matrix has one format, the first part's
        self.weight = ctx.matrix(f"{first}.weight", size, input_size, self.gated)
        self.bias = ctx.parameter(size) if bias else None
        self._linear = ctx.kernel("linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, sum of sizes]`, parts side by side in order."""
        out: Tensor = self._linear(x, self.weight, self.bias)
        return out

    def named_views(self) -> NamedViews:
        start = 0
        for part, size in self.parts.items():
            yield f"{part}.weight", rows_of(self.weight, start, start + size)
            if self.bias is not None:
                yield f"{part}.bias", self.bias.data[start : start + size]
            start += size


class QKVParallelLinear(MergedColumnParallelLinear):
    """The projections to queries, keys and values: parts "q", "k" and "v".

    Args:
        total_num_kv_heads: None for as many as query heads.
        v_head_size: of values, where it is not that of keys.
    """

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = False,
        *,
        v_head_size: int | None = None,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        kv_heads = total_num_heads if total_num_kv_heads is None else total_num_kv_heads
        sizes = {
            "q": total_num_heads * head_size,
            "k": kv_heads * head_size,
            "v": kv_heads * (head_size if v_head_size is None else v_head_size),
        }
        super().__init__(hidden_size, sizes, bias, prefix=prefix, linear_method=linear_method, ctx=ctx)


class ActivatedLinear(MergedColumnParallelLinear):
    """act(x W^T + bias)."""

    def __init__(
        self,
        input_size: int,
        output_sizes: Mapping[str, int] | Sequence[int],
        activation: str,
        bias: bool = False,
        *,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        ctx = context_of(self, ctx, prefix, linear_method, activation=activation)
        super().__init__(input_size, output_sizes, bias, ctx=ctx)
        self.activation = activation
        self._activated_linear = ctx.kernel("activated_linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, sum of sizes]`."""
        out: Tensor = self._activated_linear(x, self.weight, self.bias, activation=self.activation)
        return out


class GatedLinear(MergedColumnParallelLinear):
    """act(gate(x)) * up(x): parts "gate" and "up", of `output_size` each.

    Args:
        limit: of activations that have one.
    """

    gated = True

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: str = "silu",
        bias: bool = False,
        *,
        limit: float = LIMIT,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        ctx = context_of(self, ctx, prefix, linear_method, activation=activation)
        super().__init__(input_size, {"gate": output_size, "up": output_size}, bias, ctx=ctx)
        self.activation, self.limit = activation, limit
        self._gated_linear = ctx.kernel("gated_linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        out: Tensor = self._gated_linear(x, self.weight, self.bias, activation=self.activation, limit=self.limit)
        return out

    def named_views(self) -> NamedViews:
        for part, view in zip(self.parts, gate_and_up(self.weight), strict=True):
            yield f"{part}.weight", view
        if self.bias is not None:
            for part, half in zip(self.parts, self.bias.data.chunk(2), strict=True):
                yield f"{part}.bias", half
