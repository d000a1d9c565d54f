"""Stage 1, route: which experts each token goes to, and with what weight."""

from dataclasses import dataclass

from torch import Tensor

from moesaic.layers.base import BuildContext
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


class TopKRouter:
    """Chooses by score, as a spec says."""

    def __init__(self, ctx: BuildContext) -> None:
        self._route = ctx.kernel("route")

    def __call__(self, logits: Tensor, spec: RouterSpec, counts: Tensor | None = None) -> Routing:
        """The experts of each token from its router logits `[T, E]`; `counts` `[E]` gains the tokens of each."""
        return Routing(*self._route(logits, spec.top_k, order=spec.order, renormalize=spec.renormalize, counts=counts))
