"""Stage 2, dispatch: bring each token to the ranks of its experts; and stage 4, combine: bring the results home.

On one rank every expert is at home. All-to-all among ranks will be another class with these two methods.
"""

from torch import Tensor

from moesaic.experts.routing import Routing
from moesaic.layers.base import BuildContext


class LocalDispatch:
    """All experts are on this rank."""

    def __init__(self, ctx: BuildContext) -> None:
        self._combine = ctx.kernel("combine")

    def dispatch(self, hidden: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        """The tokens this rank computes `[T, H]` and their experts `[T, k]`: all of them."""
        return hidden, routing.ids

    def combine(self, outputs: Tensor, routing: Routing) -> Tensor:
        """Sum each token's weighted outputs `[T, k, H]` -> `[T, H]`, in k order, so that no arrival order shows."""
        combined: Tensor = self._combine(outputs, routing.weights)
        return combined
