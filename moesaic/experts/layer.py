"""A Mixture-of-Experts layer: route → dispatch → compute → combine, four calls with typed hand-offs."""

from torch import Tensor

from moesaic.experts.dispatch import LocalDispatch
from moesaic.experts.routing import Routing, TopKRouter
from moesaic.experts.stats import ExpertStats
from moesaic.experts.store import ExpertPages
from moesaic.kernels.cpu.calls import seam
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
        self.counts = stats.of_layer(index, spec.num_experts)
        self.router = ReplicatedLinear(ctx.under("router"), hidden_size, spec.num_experts)
        self.experts = ExpertPages(ctx.under("experts"), spec, hidden_size)
        self.dispatcher = LocalDispatch()
        self._choose = TopKRouter(ctx)
        self._block_size = ctx.moe_block_size
        self._fused_moe = ctx.kernel("fused_moe")

    def forward(self, hidden: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        routing = self.route(hidden)
        seam()
        tokens, local = self.dispatcher.dispatch(hidden, routing)
        return self.dispatcher.combine(self.compute(tokens, local), routing)

    def route(self, hidden: Tensor) -> Routing:
        """Choose each token's experts, and count them."""
        return self._choose(self.router(hidden), self.spec.router, self.counts)

    def compute(self, tokens: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of what each token's experts make of it, in k order: `[T, H]` -> `[T, H]`."""
        out: Tensor = self._fused_moe(
            tokens,
            routing.ids,
            routing.weights,
            self.experts.pages,
            self.spec.activation,
            block_size=self._block_size,
        )
        return out
