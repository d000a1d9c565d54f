"""What a model computes, as data: frozen, torch-free, imported by every layer that builds itself from it.

A spec holds no names of tensors or config keys, and no architecture's name. A field enters when an architecture
needs it; a choice has a name rather than a flag.
"""

from dataclasses import dataclass
from typing import Any, Literal

from moesaic.core.errors import ConfigError

Activation = Literal["silu"]


def _require_positive(spec: Any, *fields: str) -> None:
    """Raise ConfigError unless these fields are at least 1: sizes from a config nobody has looked at."""
    for field in fields:
        if getattr(spec, field) < 1:
            raise ConfigError(f"{field} must be at least 1, the config gives {getattr(spec, field)}")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All wavelengths are stretched by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """NTK-by-parts (Peng et al. 2023): stretched below `beta_slow` rotations, kept above `beta_fast`.

    Attributes:
        attention_factor: multiplies cos and sin.
        truncate: round the bounds of the interpolated range to whole dimensions.
    """

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary positions: half of a head is rotated against its other half."""

    theta: float
    scaling: Llama3Scaling | LinearScaling | YarnScaling | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer.

    Attributes:
        scale: of the scores, before the softmax.
        qkv_bias, output_bias: whether these projections add one.
        qk_norm: RMS norm of queries and keys, per "head" or over all heads together ("full"); before rope.
        clip_qkv: bound of the absolute value of queries, keys and values, after the norm.
        window: a token sees this many tokens, itself included; None for all before it.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    clip_qkv: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "num_heads", "num_kv_heads", "head_dim")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this attention."""
        qkv = self.q_size + 2 * self.kv_size
        biases = qkv * self.qkv_bias + hidden_size * self.output_bias
        norms = {None: 0, "head": 2 * self.head_dim, "full": self.q_size + self.kv_size}[self.qk_norm]
        return hidden_size * (qkv + self.q_size) + biases + norms


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """A gated feed-forward: down(act(gate(x)) * up(x))."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "intermediate_size")

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this feed-forward."""
        return 3 * hidden_size * self.intermediate_size + (2 * self.intermediate_size + hidden_size) * self.bias

    def num_active_parameters(self, hidden_size: int) -> int:
        """The same: every token meets all of it."""
        return self.num_parameters(hidden_size)


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How logits become the weights of the chosen experts.

    Attributes:
        top_k: experts a token goes to; among equal scores the lowest id wins.
        order: "score_then_select" takes the softmax over all experts and keeps the best;
            "select_then_score" keeps the best logits and takes the softmax over these.
        renormalize: divide the kept weights by their sum.
    """

    top_k: int
    order: Literal["score_then_select", "select_then_score"] = "score_then_select"
    renormalize: bool = False


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """A router over gated experts of equal shape."""

    num_experts: int
    intermediate_size: int
    router: RouterSpec
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        _require_positive(self, "num_experts", "intermediate_size")
        if not 1 <= self.router.top_k <= self.num_experts:
            raise ConfigError(
                f"each token goes to {self.router.top_k} experts, the config says, but there are {self.num_experts}"
            )

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of the router and all experts."""
        return hidden_size * self.num_experts * (1 + 3 * self.intermediate_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Weights that one token meets: the router and its top-k experts."""
        return hidden_size * (self.num_experts + 3 * self.router.top_k * self.intermediate_size)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One decoder layer: norm, attention, norm, feed-forward, each pair around a residual."""

    attention: AttentionSpec
    ffn: DenseSpec | MoESpec


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Factors on the embeddings, on what each block adds to the residual, and on the logits."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model.

    Attributes:
        norm_eps: of every RMS norm.
        tied_embeddings: the output projection is the embedding table.
    """

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    norm_eps: float
    tied_embeddings: bool
    layers: tuple[LayerSpec, ...]
    multipliers: Multipliers = Multipliers()

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "max_position_embeddings")
        if not self.layers:
            raise ConfigError("the config gives no layers")

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        return self._shared_parameters() + sum(la.ffn.num_parameters(self.hidden_size) for la in self.layers)

    @property
    def num_active_parameters(self) -> int:
        """Parameters less those of experts that a token is not routed to."""
        return self._shared_parameters() + sum(la.ffn.num_active_parameters(self.hidden_size) for la in self.layers)

    def _shared_parameters(self) -> int:
        """Embeddings, attention and norms."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = self.hidden_size * (1 + 2 * len(self.layers))
        return embeddings + norms + sum(la.attention.num_parameters(self.hidden_size) for la in self.layers)
