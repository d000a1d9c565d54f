"""Stage 1, route: which experts each token goes to, and with what weight."""

from dataclasses import dataclass

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.linear import ReplicatedLinear
from moesaic.models.spec import RouterSpec


@dataclass
class Routing:
    """Where the step's tokens go.

    Attributes:
        ids: `[T, k]` int32, logical experts, best first; no token names one twice.
        weights: `[T, k]` fp32.
    """

    ids: Tensor
    weights: Tensor


class Router(Layer):
    """Scores every expert for every token, and chooses as a spec says.

    Attributes:
        correction: `[E]`, added to the scores for the choice alone, where the spec has one.
    """

    def __init__(self, ctx: BuildContext, spec: RouterSpec, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.projection = ReplicatedLinear(hidden_size, num_experts, bias=spec.bias, ctx=ctx)
        self.correction = ctx.parameter(num_experts) if spec.correction else None
        self._route = ctx.kernel("route")

    def forward(self, hidden: Tensor, spec: RouterSpec, counts: Tensor | None = None) -> Routing:
        """The experts of each token `[T, H]`; `counts` `[E]` gains the tokens of each."""
        return self.choose(self.projection(hidden), spec, counts)

    def choose(self, logits: Tensor, spec: RouterSpec, counts: Tensor | None = None) -> Routing:
        """The same from the experts' logits `[T, E]`."""
        chosen = self._route(
            logits,
            spec.top_k,
            scoring=spec.scoring,
            order=spec.order,
            renormalize=spec.renormalize,
            bias=self.correction,
            num_groups=spec.num_groups,
            top_groups=spec.top_groups,
            group_score=spec.group_score,
            masked_score=spec.masked_score,
            epsilon=spec.epsilon,
            floor=spec.floor,
            scale=spec.scale,
            cap=spec.cap,
            counts=counts,
        )
        return Routing(*chosen)

    def named_views(self) -> NamedViews:
        yield from self.projection.named_views()
        if self.correction is not None:
            yield "correction", self.correction.data
