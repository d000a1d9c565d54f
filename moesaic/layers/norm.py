"""RMS normalisation."""

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews


class RMSNorm(Layer):
    """Scale each vector to unit root mean square, then by a learned weight."""

    def __init__(self, ctx: BuildContext, size: int, eps: float) -> None:
        super().__init__()
        self.weight = ctx.parameter(size)
        self.eps = eps
        self._rms_norm = ctx.kernel("rms_norm")
        self._add_rms_norm = ctx.kernel("add_rms_norm")

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` -> `[..., size]`, computed in fp32."""
        out: Tensor = self._rms_norm(x, self.weight, self.eps)
        return out

    def add(self, hidden: Tensor, delta: Tensor | None, alpha: float) -> tuple[Tensor, Tensor]:
        """`hidden + alpha * delta` (which may overwrite `hidden`) and its norm, both `[T, size]`."""
        both: tuple[Tensor, Tensor] = self._add_rms_norm(hidden, delta, alpha, self.weight, self.eps)
        return both

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
