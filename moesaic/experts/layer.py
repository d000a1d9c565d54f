"""A Mixture-of-Experts layer: route → dispatch → compute → combine, four calls with typed hand-offs."""

from torch import Tensor

from moesaic.experts.dispatch import LocalDispatch
from moesaic.experts.routing import route
from moesaic.experts.stats import ExpertStats
from moesaic.experts.store import ExpertPages
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.linear import ReplicatedLinear
from moesaic.models.spec import MoESpec


class MoE(Layer):
    """A router and its experts.

    Args:
        index: of the decoder layer, under which `stats` counts.
    """

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int, index: int, stats: ExpertStats) -> None:
        super().__init__()
        self.spec = spec
        self.index = index
        self.stats = stats
        self.router = ReplicatedLinear(ctx, hidden_size, spec.num_experts)
        self.experts = ExpertPages(ctx, spec, hidden_size)
        self.dispatcher = LocalDispatch(ctx)
        self._fused_moe = ctx.kernel("fused_moe")

    def forward(self, hidden: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        pages = self.experts
        routing = route(self.router(hidden), self.spec.router)
        self.stats.record(self.index, routing.ids)
        tokens, ids = self.dispatcher.dispatch(hidden, routing)
        outputs = self._fused_moe(tokens, ids, pages.gate_up, pages.down, pages.slot_of)
        return self.dispatcher.combine(outputs, routing)
