"""Normalisation, as its spec says."""

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.models.spec import NormSpec


class Norm(Layer):
    """Scale each vector to unit root mean square (a "layer" norm takes its mean away first), then by a learned weight.

    Attributes:
        weight: as it is multiplied with: `offset` is added to what was stored, once it is loaded.
    """

    def __init__(self, ctx: BuildContext, spec: NormSpec, size: int) -> None:
        super().__init__()
        self.spec = spec
        self.eps = spec.eps
        self.weight = ctx.parameter(size)
        self.bias = ctx.parameter(size) if spec.bias else None
        self._norm = ctx.kernel(f"{spec.kind}_norm")
        self._add_norm = ctx.kernel(f"add_{spec.kind}_norm")
        self._more = () if spec.kind == "rms" else (self.bias,)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` -> `[..., size]`, computed in fp32."""
        out: Tensor = self._norm(x, self.weight, *self._more, self.eps)
        return out

    def add(self, hidden: Tensor, delta: Tensor | None, alpha: float) -> tuple[Tensor, Tensor]:
        """`hidden + alpha * delta` (which may overwrite `hidden`) and its norm, both `[T, size]`."""
        both: tuple[Tensor, Tensor] = self._add_norm(hidden, delta, alpha, self.weight, *self._more, self.eps)
        return both

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
        if self.bias is not None:
            yield "bias", self.bias.data

    def loaded(self) -> None:
        if self.spec.offset:
            self.weight.data.add_(self.spec.offset)
