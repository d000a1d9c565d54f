"""Projections. Each holds its weights as `[out, in]` and speaks to the group of ranks that share it."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews


class ReplicatedLinear(Layer):
    """A projection that every rank holds whole."""

    def __init__(self, ctx: BuildContext, in_size: int, out_size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = ctx.parameter(out_size, in_size)
        self.bias = ctx.parameter(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return F.linear(x, self.weight, self.bias)

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
        if self.bias is not None:
            yield "bias", self.bias.data


class MergedColumnLinear(Layer):
    """Several projections of the same input as one product; each rank would hold some rows of each.

    Args:
        parts: name -> output size; canonical names are `{part}.weight`, and each is some rows of one tensor.
    """

    def __init__(self, ctx: BuildContext, in_size: int, parts: Mapping[str, int], bias: bool = False) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.weight = ctx.parameter(sum(parts.values()), in_size)
        self.bias = ctx.parameter(sum(parts.values())) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, sum of parts]`, parts side by side in order."""
        return F.linear(x, self.weight, self.bias)

    def named_views(self) -> NamedViews:
        start = 0
        for part, size in self.parts.items():
            rows = slice(start, start + size)
            yield f"{part}.weight", self.weight.data[rows]
            if self.bias is not None:
                yield f"{part}.bias", self.bias.data[rows]
            start += size


class RowLinear(Layer):
    """A projection whose input is split over the ranks; their partial results are summed."""

    def __init__(self, ctx: BuildContext, in_size: int, out_size: int, bias: bool = False) -> None:
        super().__init__()
        self.group = ctx.group
        self.weight = ctx.parameter(out_size, in_size)
        self.bias = ctx.parameter(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return self.group.all_reduce(F.linear(x, self.weight, self.bias))

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
        if self.bias is not None:
            yield "bias", self.bias.data
