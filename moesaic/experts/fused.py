"""The experts of a hand-written model: their weights, and the stages behind the router."""

from typing import Any

from torch import Tensor

from moesaic.experts.dispatch import LocalDispatch
from moesaic.experts.layer import run_experts
from moesaic.experts.routing import Routing, RoutingKernels, choose_experts, note_router
from moesaic.experts.stage import Stage
from moesaic.experts.stats import Tap
from moesaic.experts.steering import Steering
from moesaic.experts.store import ExpertPages
from moesaic.kernels.cpu.calls import seam
from moesaic.kernels.route_table import RouteTable
from moesaic.layers.base import Layer, NamedViews
from moesaic.layers.context import LinearMethod, context_of
from moesaic.models.spec import MoESpec, RouterSpec

SHARDS = {"gate": ("w13", "w1"), "up": ("w13", "w3"), "down": ("w2", "w2")}


class FusedMoE(Layer):
    """Experts of equal shape: dispatch → compute → combine, in as few kernels as there can be.

    Its parameters are vLLM's, `w13_weight` (gate over up) and `w2_weight` (down), and `w13_bias` and `w2_bias` where
    experts have biases; each has a `weight_loader(param, weight, weight_name, shard_id, expert_id)`.

    Args:
        renormalize, scoring: of the choice by router logits; a `Router` that chooses by itself has its own.
        gated: down(act(gate(x)) * up(x)); else down(act(up(x))).
    """

    of_experts = True
    tap: Tap | None = None
    table: RouteTable | None = None
    stage: Stage | None = None
    steering: Steering | None = None  # where no router of ours is in the layer

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        renormalize: bool = True,
        scoring: Any = "softmax",
        activation: Any = "silu",
        gated: bool = True,
        bias: bool = False,
        prefix: str = "",
        linear_method: LinearMethod = None,
    ) -> None:
        super().__init__()
        ctx = context_of(self, None, prefix, linear_method, activation=activation)
        self.spec = MoESpec(
            num_experts=num_experts,
            intermediate_size=intermediate_size,
            router=RouterSpec(top_k=top_k, renormalize=renormalize, scoring=scoring),
            activation=activation,
            gated=gated,
            bias=bias,
        )
        self.experts = ExpertPages(ctx, self.spec, hidden_size)
        self.dispatcher = LocalDispatch()
        self._block_size = ctx.moe_block_size
        self._fused_moe, self.kernels = ctx.kernel("fused_moe"), RoutingKernels.of(ctx)
        note_router(self, prefix, num_experts, top_k)

    def forward(self, hidden_states: Tensor, routing: Tensor | Routing) -> Tensor:
        """Each token's experts' weighted sum: `[T, H]` -> `[T, H]`.

        Args:
            routing: what a `Router` chose, or logits `[T, E]` to choose by.
        """
        if isinstance(routing, Tensor):
            routing = self._choose(routing)
        elif self.steering is not None:
            self.steering.refuse("the model's class routes by its own code")
        seam()
        tokens, local = self.dispatcher.dispatch(hidden_states, routing)
        out = run_experts(self._fused_moe, tokens, local, self.experts.pages, self.spec, self._block_size, self.tap)
        return self.dispatcher.combine(out, routing)

    def _choose(self, logits: Tensor) -> Routing:
        tap = self.tap
        counts = None if tap is None else tap.counts
        routing = choose_experts(
            self.kernels.route, logits, self.spec.router, None, counts, table=self.table, stage=self.stage
        )
        if tap is not None:
            tap.note(routing)
        return routing

    def named_views(self) -> NamedViews:
        yield from self.experts.named_views()

    def parameter_parts(self) -> dict[str, dict[str, Any]]:
        """Experts' matrices as vLLM stacks them."""
        parts: dict[str, dict[str, Any]] = {}
        for name, view in self.experts.named_views():
            expert, matrix, kind = name.split(".")
            parameter, shard = SHARDS[matrix] if self.spec.gated or matrix != "up" else ("w13", "w1")
            parts.setdefault(f"{parameter}_{kind}", {})[f"{expert}.{shard}"] = view
        return parts

    @staticmethod
    def make_expert_params_mapping(
        ckpt_gate_proj_name: str, ckpt_down_proj_name: str, ckpt_up_proj_name: str, num_experts: int
    ) -> list[tuple[str, str, int, str]]:
        """(part of our parameter's name, part of the checkpoint's, expert, shard) of every matrix, as vLLM's."""
        names = {"w1": ckpt_gate_proj_name, "w2": ckpt_down_proj_name, "w3": ckpt_up_proj_name}
        return [
            (f"experts.{'w2' if shard == 'w2' else 'w13'}_", f"experts.{expert}.{name}.", expert, shard)
            for expert in range(num_experts)
            for shard, name in names.items()
        ]
