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

    def projections(self, hidden_size: int) -> list[tuple[int, int]]:
        """Outputs and inputs of the matrices."""
        return [(3 * hidden_size, hidden_size), (hidden_size, hidden_size)]

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

    def projections(self, hidden_size: int) -> list[tuple[int, int]]:
        """Outputs and inputs of the matrices."""
        mixed, last = 2 * self.key_size + self.value_size, (hidden_size, self.value_size)
        if self.rank is None:
            return [(mixed + self.value_size + self.num_heads + self.num_decays, hidden_size), last]
        low = [(self.num_decays, self.rank), (self.value_size, self.rank)]
        return [(mixed + self.num_heads + 2 * self.rank, hidden_size), *low, last]

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of this mixer."""
        conv = (2 * self.key_size + self.value_size) * self.conv_width
        matrices = sum(rows * cols for rows, cols in self.projections(hidden_size))
        return matrices + conv + self.num_heads + self.num_decays + self.value_dim


@dataclass(frozen=True, kw_only=True)
class Mamba2Spec:
    """Mamba 2 (Dao and Gu 2024): what is read of a head's matrix is gated, then normed by group.

    Attributes:
        num_heads, head_dim: of what is taken in, each with a matrix [state_size, head_dim].
        num_groups: heads that share where they write and read (B and C), and a norm.
        conv_width: tokens that the convolution reaches, its own included.
        bias, conv_bias: whether the projections, and the convolution, add one.
        step_limits: bounds of a head's step.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_width: int
    bias: bool = False
    conv_bias: bool = True
    step_limits: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "state_size", "num_groups", "conv_width")
        if self.num_heads % self.num_groups:
            raise ConfigError(f"{self.num_heads} heads do not make {self.num_groups} equal groups")

    @property
    def inner_size(self) -> int:
        """Numbers in all heads."""
        return self.num_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Numbers in B, or C, of all groups."""
        return self.num_groups * self.state_size

    def projections(self, hidden_size: int) -> list[tuple[int, int]]:
        """Outputs and inputs of the matrices."""
        outputs = 2 * self.inner_size + 2 * self.group_size + self.num_heads
        return [(outputs, hidden_size), (hidden_size, self.inner_size)]

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this mixer."""
        (outputs, _), _ = shapes = self.projections(hidden_size)
        matrices = sum(rows * cols for rows, cols in shapes) + (outputs + hidden_size) * self.bias
        conv = (self.inner_size + 2 * self.group_size) * (self.conv_width + self.conv_bias)
        return matrices + conv + 3 * self.num_heads + self.inner_size


@dataclass(frozen=True, kw_only=True)
class MambaSpec:
    """Mamba (Gu and Dao 2023) with norms of steps, B and C (Jamba, Lieber et al. 2024).

    Attributes:
        inner_size: channels, each with a state of state_size numbers.
        step_rank: steps come from a projection through so few numbers.
        conv_width: tokens that the convolution reaches, its own included.
        bias, conv_bias: whether the projections in and out, and the convolution, add one.
    """

    inner_size: int
    state_size: int
    step_rank: int
    conv_width: int
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "inner_size", "state_size", "step_rank", "conv_width")

    def projections(self, hidden_size: int) -> list[tuple[int, int]]:
        """Outputs and inputs of the matrices."""
        inner, rank = self.inner_size, self.step_rank
        return [(2 * inner, hidden_size), (rank + 2 * self.state_size, inner), (inner, rank), (hidden_size, inner)]

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this mixer."""
        inner, norms = self.inner_size, self.step_rank + 2 * self.state_size
        matrices = sum(rows * cols for rows, cols in self.projections(hidden_size))
        biases = (2 * inner + hidden_size) * self.bias + inner
        return matrices + biases + norms + inner * (self.conv_width + self.conv_bias + self.state_size + 1)


@dataclass(frozen=True, kw_only=True)
class LinearAttentionSpec:
    """Linear attention whose matrices fade by a fixed share (lightning attention, Qin et al. 2024; MiniMax-01, 2025).

    Queries, keys and values pass through silu; what heads give is normed together and gated by sigmoids.

    Attributes:
        decays: what each head keeps from token to token.
        norm_eps: of the norm of what heads give.
    """

    num_heads: int
    head_dim: int
    decays: tuple[float, ...]
    norm_eps: float

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim")

    @property
    def size(self) -> int:
        """Numbers in all heads."""
        return self.num_heads * self.head_dim

    def projections(self, hidden_size: int) -> list[tuple[int, int]]:
        """Outputs and inputs of the matrices."""
        return [(4 * self.size, hidden_size), (hidden_size, self.size)]

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of this mixer."""
        return sum(rows * cols for rows, cols in self.projections(hidden_size)) + self.size


RecurrentSpec = ShortConvSpec | GatedDeltaSpec | Mamba2Spec | MambaSpec | LinearAttentionSpec
