"""A vector that is added to every token."""

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews


class Bias(Layer):
    """x + weight, by itself: where no product is at hand that could add it."""

    def __init__(self, ctx: BuildContext, size: int) -> None:
        super().__init__()
        self.weight = ctx.parameter(size)
        self._add_bias = ctx.kernel("add_bias")

    def forward(self, x: Tensor) -> Tensor:
        """`[T, size]` -> `[T, size]`."""
        out: Tensor = self._add_bias(x, self.weight)
        return out

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
