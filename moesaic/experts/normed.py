"""Experts beside a shared one, each behind norms of its own."""

from dataclasses import replace

from torch import Tensor

from moesaic.experts.layer import MoE
from moesaic.experts.stats import ExpertStats
from moesaic.kernels.cpu.calls import seam
from moesaic.layers.base import BuildContext
from moesaic.layers.norm import Norm
from moesaic.models.spec import MoESpec, NormSpec


class NormedMoE(MoE):
    """norm(shared(hidden)) + norm(experts(norm(residual))), where the router sees the residual through a norm too.

    Args:
        norm: the layer's kind.
    """

    def __init__(
        self, ctx: BuildContext, spec: MoESpec, hidden_size: int, index: int, stats: ExpertStats, norm: NormSpec
    ) -> None:
        super().__init__(ctx, spec, hidden_size, index, stats)
        self.router_norm = Norm(ctx, replace(norm, factor=hidden_size**-0.5), hidden_size)
        self.input_norm, self.output_norm, self.shared_norm = (Norm(ctx, norm, hidden_size) for _ in range(3))

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """`[T, H]` normed by the layer, and the residual stream `[T, H]` -> `[T, H]`."""
        routing = self.route(self.router_norm(residual))
        seam()
        tokens, local = self.dispatcher.dispatch(self.input_norm(residual), routing)
        routed = self.output_norm(self.dispatcher.combine(self.compute(tokens, local), routing))
        assert self.shared is not None
        out: Tensor = self._mix(self.shared_norm(self.shared(hidden)), routed)
        return out
