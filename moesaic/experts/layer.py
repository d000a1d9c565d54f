"""A Mixture-of-Experts layer: route → dispatch → compute → combine, four calls with typed hand-offs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from moesaic.experts.dispatch import LocalDispatch
from moesaic.experts.routing import Router, Routing
from moesaic.experts.stats import ExpertStats, Tap
from moesaic.experts.store import ExpertPages
from moesaic.kernels.cpu.calls import seam
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.bias import Bias
from moesaic.layers.linear import ReplicatedLinear
from moesaic.layers.mlp import MLP
from moesaic.models.spec import MoESpec


class MoE(Layer):
    """A router and its experts, and perhaps a shared one that every token meets.

    Args:
        index: of the decoder layer, by which `stats` knows it.
    """

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int, index: int, stats: ExpertStats) -> None:
        super().__init__()
        self.spec = spec
        self.tap = stats.tap(index, spec.num_choices, spec.router.top_k)
        self.router = Router(hidden_size, spec.num_choices, spec.router, ctx=ctx.under("router"))
        self.experts = ExpertPages(ctx.under("experts"), spec, spec.width(hidden_size))
        self.latent_in = self.latent_out = None
        if spec.latent_size is not None:
            self.latent_in = ReplicatedLinear(hidden_size, spec.latent_size, ctx=ctx.under("latent_in"))
            self.latent_out = ReplicatedLinear(spec.latent_size, hidden_size, ctx=ctx.under("latent_out"))
        self.dispatcher = LocalDispatch()
        self._block_size = ctx.moe_block_size
        self._fused_moe = ctx.kernel("fused_moe")
        self._mix = ctx.kernel("mix")
        self._add_identity = ctx.kernel("add_identity")
        self.output_bias = Bias(ctx.under("output_bias"), hidden_size) if spec.output_bias else None
        self.shared = self.shared_gate = None
        if spec.shared is not None:
            self.shared = MLP(ctx.under("shared"), spec.shared.ffn, hidden_size)
            if spec.shared.gate:
                self.shared_gate = ReplicatedLinear(hidden_size, 1, ctx=ctx.under("shared_gate"))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        routing = self.route(hidden)
        seam()
        given = hidden if self.latent_in is None else self.latent_in(hidden)
        tokens, local = self.dispatcher.dispatch(given, routing)
        routed = self.dispatcher.combine(self.compute(tokens, local), routing)
        routed = routed if self.latent_out is None else self.latent_out(routed)
        if self.spec.identity_experts:
            routed = self._add_identity(routed, hidden, routing.ids, routing.weights, self.spec.num_experts)
        out = self.with_shared(hidden, routed)
        return out if self.output_bias is None else self.output_bias(out)

    def route(self, hidden: Tensor) -> Routing:
        """Choose each token's experts, and count them."""
        routing: Routing = self.router(hidden, self.spec.router, self.tap)
        return routing

    def compute(self, tokens: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of what each token's experts make of it, in k order: `[T, H]` -> `[T, H]`."""
        return run_experts(self._fused_moe, tokens, routing, self.experts.pages, self.spec, self._block_size, self.tap)

    def with_shared(self, hidden: Tensor, routed: Tensor) -> Tensor:
        """What the routed experts gave, scaled, and what the shared one makes of the same tokens: `[T, H]`."""
        scale, shared = self.spec.output_scale, self.spec.shared
        if self.shared is None or shared is None:
            out: Tensor = routed if scale == 1.0 else self._mix(routed, None, scale)
            return out
        part = 0.5 if shared.average else 1.0
        gate = self.shared_gate(hidden) if self.shared_gate is not None else None
        out = self._mix(routed, self.shared(hidden), scale * part, part, gate)
        return out


def run_experts(
    fused_moe: Callable[..., Any],
    tokens: Tensor,
    routing: Routing,
    pages: Any,
    spec: MoESpec,
    block_size: int,
    tap: Tap | None,
) -> Tensor:
    """The weighted sum of what each token's experts make of it, in k order: `[T, H]` -> `[T, H]`."""
    out: Tensor = fused_moe(
        tokens,
        routing.ids,
        routing.weights,
        pages,
        spec.activation,
        weight_on_input=spec.weight_on_input,
        alpha=spec.alpha,
        limit=spec.limit,
        block_size=block_size,
        tally=None if tap is None else tap.tally,
    )
    return out
