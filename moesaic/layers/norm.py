"""Normalisation, as its spec says."""

from typing import Any

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.context import context_of
from moesaic.models.spec import NormSpec


class Norm(Layer):
    """Scale each vector to unit root mean square (a "layer" norm takes its mean away first), then by a learned weight.

    Attributes:
        weight: as it is multiplied with: what was stored, times `factor`, plus `offset`, once it is loaded.
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
        if self.spec.factor != 1.0:
            self.weight.data.mul_(self.spec.factor)
        if self.spec.offset:
            self.weight.data.add_(self.spec.offset)


class RMSNorm(Norm):
    """`x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019), as a hand-written model names it."""

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, prefix: str = "") -> None:
        ctx = context_of(self, None, prefix, plain=True)
        super().__init__(ctx, NormSpec(eps=eps), hidden_size)
        self._norm_heads = ctx.kernel("norm_heads")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """The norm of `[T, size]`; or, with a residual, that of their sum, and the sum.

        Args:
            x: or `[T, heads, size]`, each head by itself; may be columns of a wider tensor where there is no residual.
        """
        if residual is not None:
            total, normed = self.add(residual, x, 1.0)
            return normed, total
        return super().forward(x) if x.dim() == 2 and x.is_contiguous() else self._norm_heads(x, self.weight, self.eps)
