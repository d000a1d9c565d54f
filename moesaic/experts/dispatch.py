"""Stage 2, dispatch: bring each token to the ranks of its experts; and stage 4, combine: bring the results home.

On one rank every expert is at home, and the kernel of stage 3 has summed a token's outputs already. All-to-all among
ranks will be another class with these two methods.
"""

from torch import Tensor

from moesaic.experts.routing import Routing


class LocalDispatch:
    """All experts are on this rank."""

    def dispatch(self, hidden: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
        """The tokens this rank computes `[T, H]` and where they go: all of them."""
        return hidden, routing

    def combine(self, outputs: Tensor, routing: Routing) -> Tensor:
        """Each token's outputs `[T, H]`, summed over its experts in k order: nothing is left to do."""
        return outputs
