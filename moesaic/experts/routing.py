"""Stage 1, route: which experts each token goes to, and with what weight."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torch import Tensor

from moesaic.experts.stats import Tap
from moesaic.kernels.route_table import RouteTable
from moesaic.layers.base import BuildContext, NamedViews
from moesaic.layers.context import LinearMethod, RouterNote, context_of, current_construction
from moesaic.layers.linear import ReplicatedLinear
from moesaic.models.spec import RouterSpec

if TYPE_CHECKING:
    from moesaic.experts.stage import Stage


@dataclass
class Routing:
    """Where the step's tokens go.

    Attributes:
        ids: `[T, k]` int32, logical experts, best first; no token names one twice. -1 is a choice not used.
        weights: `[T, k]` fp32, 0 of choices not used.
    """

    ids: Tensor
    weights: Tensor

    def first(self, rows: int) -> Self:
        """Those of the first tokens; what is written into them is written here."""
        return type(self)(self.ids[:rows], self.weights[:rows])


class RoutingKernels(NamedTuple):
    """The operations of routing in one backend (`kernels.reference_router` says what each does)."""

    route: Callable[..., Any]
    route_scores: Callable[..., Tensor]
    route_logits: Callable[..., Tensor]
    route_changes: Callable[[Tensor, Tensor, Tensor], Tensor]
    route_replace: Callable[..., None]
    route_seconds: Callable[[], float]

    @classmethod
    def of(cls, ctx: BuildContext) -> Self:
        """Those of the backend that a model's routers have."""
        return cls(*(ctx.kernel(name) for name in cls._fields))


class Router(ReplicatedLinear):
    """Scores every expert for every token, and chooses as a spec says.

    Args:
        spec: how; a hand-written model may give the fields of RouterSpec one by one instead, as `options`.

    Attributes:
        correction: `[E]`, added to the scores for the choice alone, where the spec has one.
        expert_scale: `[E]`, multiplies the experts' weights, likewise.
        tap: its place in the model's statistics; those who call it may give another.
        kernels: that choose.
        table: how rows are routed whose requests say so; None where none may (`experts.steering`).
        stage: what may decide instead of the router (`experts.custom`), likewise.
    """

    tap: Tap | None = None
    table: RouteTable | None = None
    stage: "Stage | None" = None

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        spec: RouterSpec | None = None,
        *,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
        **options: Any,
    ) -> None:
        spec = spec or RouterSpec(**options)
        if ctx is None:
            note_router(self, prefix, num_experts, spec.top_k)
        ctx = context_of(self, ctx, prefix, linear_method, plain=True)
        super().__init__(hidden_size, num_experts, spec.bias, ctx=ctx)
        self.spec = spec
        self.correction = ctx.parameter(num_experts) if spec.correction else None
        self.expert_scale = ctx.parameter(num_experts) if spec.expert_scale else None
        self.kernels = RoutingKernels.of(ctx)

    def forward(self, hidden: Tensor, spec: RouterSpec | None = None, tap: Tap | None = None) -> Routing:
        """The experts of each token `[T, H]`.

        Args:
            spec: instead of the router's own.
            tap: likewise.
        """
        tap = tap or self.tap
        routing = self.choose(self.logits(hidden), spec or self.spec, None if tap is None else tap.counts)
        if tap is not None:
            tap.note(routing)
        return routing

    def logits(self, hidden: Tensor) -> Tensor:
        """A number an expert: `[T, H]` -> `[T, E]`."""
        return super().forward(hidden)

    def choose(self, logits: Tensor, spec: RouterSpec, counts: Tensor | None = None) -> Routing:
        """The experts from their logits `[T, E]`."""
        return choose_experts(
            self.kernels.route, logits, spec, self.correction, counts, self.expert_scale, self.table, self.stage
        )

    def named_views(self) -> NamedViews:
        yield from super().named_views()
        if self.correction is not None:
            yield "correction", self.correction.data
        if self.expert_scale is not None:
            yield "expert_scale", self.expert_scale.data


class StableRouter(Router):
    """A router whose logits are clamped to [-limit, limit], so that no expert's score can drown all others'."""

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        spec: RouterSpec | None = None,
        *,
        limit: float = 50.0,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_experts, spec, prefix=prefix, linear_method=linear_method, ctx=ctx, **options)
        self.limit = limit
        self._clamp = (ctx or current_construction().ctx).kernel("clamp")

    def logits(self, hidden: Tensor) -> Tensor:
        """A number an expert, within the limit: `[T, H]` -> `[T, E]`."""
        clamped: Tensor = self._clamp(super().logits(hidden), self.limit)
        return clamped


def choose_experts(
    route: Callable[..., Any],
    logits: Tensor,
    spec: RouterSpec,
    correction: Tensor | None,
    counts: Tensor | None,
    expert_scale: Tensor | None = None,
    table: RouteTable | None = None,
    stage: "Stage | None" = None,
    choice: Tensor | None = None,
) -> Routing:
    """Where tokens go whose experts have these logits `[T, E]`; chosen by `choice` `[T, E]`, if that is given."""
    chosen = route(
        logits,
        spec.top_k if table is None or not table.active else table.width,
        scoring=spec.scoring,
        order=spec.order,
        renormalize=spec.renormalize,
        bias=correction,
        num_groups=spec.num_groups,
        top_groups=spec.top_groups,
        group_score=spec.group_score,
        masked_score=spec.masked_score,
        epsilon=spec.epsilon,
        floor=spec.floor,
        scale=spec.scale,
        cap=spec.cap,
        jitter=spec.jitter,
        expert_scale=expert_scale,
        counts=counts,
        table=table,
        choice=choice,
    )
    routing = Routing(*chosen)
    if stage is not None and stage.active:
        routing = stage(routing, logits, spec, correction, expert_scale, counts, table)
    return routing


def note_router(layer: Any, prefix: str, num_experts: int, top_k: int) -> None:
    """Tell the hand-written model being built that this layer routes: what kernels must do, and whom to count for."""
    construction = current_construction()
    construction.ask("router", num_experts=num_experts, top_k=top_k)
    construction.routers.append(RouterNote(prefix, layer, num_experts, top_k))
