"""Mixers that keep a state of fixed size for each sequence, instead of something of every token."""

from dataclasses import dataclass
from typing import Literal

from moesaic.core.errors import ConfigError
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


@dataclass(frozen=True, kw_only=True)
class GatedDeltaSpec:
    """The gated delta rule (Gated DeltaNet, Yang et al. 2024).

    Queries, keys and values are convolved over a few tokens; each head's matrix fades by a gate and takes in what it
    did not know of a key's value; what it gives is normed and gated.

    Attributes:
        num_key_heads: of queries and keys; each serves as many heads as neighbours.
        num_heads: of values, each with a matrix [key_dim, value_dim].
        conv_width: tokens that the convolution reaches, its own included.
        decay: of a "head", or of each "channel" of its keys (Kimi Delta Attention, Kimi Linear 2025).
        gate: of what heads give, after their norm.
        rank: decays and gates come from projections through so few numbers; None for from the token itself.
    """

    num_key_heads: int
    num_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    decay: Literal["head", "channel"] = "head"
    gate: Literal["silu", "sigmoid"] = "silu"
    rank: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_key_heads", "num_heads", "key_dim", "value_dim", "conv_width")
        if self.num_heads % self.num_key_heads:
            raise ConfigError(f"{self.num_key_heads} heads of keys do not serve {self.num_heads} heads evenly")

    @property
    def key_size(self) -> int:
        """Numbers in all keys of a token."""
        return self.num_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Numbers in all values of a token."""
        return self.num_heads * self.value_dim

    @property
    def num_decays(self) -> int:
        """Decays of a token."""
        return self.num_heads * (self.key_dim if self.decay == "channel" else 1)

    @property
    def state_size(self) -> int:
        """Numbers in all matrices of a sequence."""
        return self.num_heads * self.key_dim * self.value_dim

    def matrix_size(self, hidden_size: int) -> int:
        """Weights of the projections."""
        plain = 2 * self.key_size + 2 * self.value_size + self.num_heads
        if self.rank is None:
            return hidden_size * (plain + self.value_size + self.num_decays)
        low = self.rank * (2 * hidden_size + self.value_size + self.num_decays)
        return hidden_size * plain + low

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of this mixer."""
        conv = (2 * self.key_size + self.value_size) * self.conv_width
        return self.matrix_size(hidden_size) + conv + self.num_heads + self.num_decays + self.value_dim
