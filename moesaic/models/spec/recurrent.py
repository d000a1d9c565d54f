"""Mixers that keep a state of fixed size for each sequence, instead of something of every token."""

from dataclasses import dataclass

from moesaic.models.spec.checks import require_positive


@dataclass(frozen=True, kw_only=True)
class ShortConvSpec:
    """A gated short convolution (LFM2): o(c * conv(b * x)), where b, c and x are projections of the token.

    Attributes:
        width: tokens that an output depends on, its own included.
        bias: whether the projections and the convolution add one.
    """

    width: int
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "width")

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this mixer."""
        return hidden_size * (4 * hidden_size + self.width + 5 * self.bias)
