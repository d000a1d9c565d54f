"""What a model computes, as data: frozen, torch-free, imported by every layer that builds itself from it.

A spec holds no names of tensors or config keys, and no architecture's name. A field enters when an architecture
needs it; a choice has a name rather than a flag.
"""

from dataclasses import dataclass
from typing import Any, Literal

from moesaic.core.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swigluoai"]


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
    """Rotary positions: pairs of a head's numbers are turned.

    Attributes:
        dim: how many of a head's numbers, from the first on; None for all.
        interleaved: pairs are neighbours; else the halves of these numbers are turned against each other.
    """

    theta: float
    scaling: Llama3Scaling | LinearScaling | YarnScaling | None = None
    dim: int | None = None
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """Normalisation of a vector.

    Attributes:
        kind: "rms" divides by the root mean square; "layer" takes the mean away first.
        offset: what is added to the stored weight (1 where it is stored as its difference from 1).
        bias: whether a "layer" norm adds one.
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    bias: bool = False

    def num_parameters(self, size: int) -> int:
        """Weights, and biases if there are any."""
        return size * (1 + self.bias)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer.

    Attributes:
        scale: of the scores, before the softmax.
        qkv_bias, output_bias: whether these projections add one.
        qk_norm: norm of queries and keys, per "head" or over all heads together ("full").
        qk_norm_last: after rope rather than before.
        clip_qkv: bound of the absolute value of queries, keys and values, after a norm that comes first.
        window: a token sees this many tokens, itself included; None for all before it.
        rope: None where positions do not show.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: each head has a learned logit that takes weight and gives nothing.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_last: bool = False
    clip_qkv: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

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
        return hidden_size * (qkv + self.q_size) + biases + norms + self.num_heads * self.sinks


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """A feed-forward: down(act(gate(x)) * up(x)), or, not gated, down(act(up(x)))."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    gated: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "intermediate_size")

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this feed-forward."""
        inner = (1 + self.gated) * self.intermediate_size
        return hidden_size * (inner + self.intermediate_size) + (inner + hidden_size) * self.bias

    def num_active_parameters(self, hidden_size: int) -> int:
        """The same: every token meets all of it."""
        return self.num_parameters(hidden_size)


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How logits become the weights of the chosen experts (`kernels.reference_router.route` computes it).

    Attributes:
        top_k: experts a token goes to; among equal scores the lowest id wins.
        scoring: of logits.
        order: "score_then_select" scores all experts and keeps the best; "select_then_score" keeps the best logits and
            scores these alone.
        renormalize: divide the kept weights by `max(sum + epsilon, floor)`.
        bias: the projection to logits adds one.
        correction: a learned number an expert is added to the scores for the choice alone.
        num_groups, top_groups: the choice is among the experts of the best groups; a group's score is its "max" or the
            sum of its "top2"; experts outside count as masked_score.
        scale: of the weights, after renormalising.
        cap: logits become `cap * tanh(logits / cap)` first.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid", "sqrt_softplus", "identity"] = "softmax"
    order: Literal["score_then_select", "select_then_score"] = "score_then_select"
    renormalize: bool = False
    epsilon: float = 0.0
    floor: float = 0.0
    bias: bool = False
    correction: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["top2", "max"] = "top2"
    masked_score: float = float("-inf")
    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "num_groups", "top_groups")
        if self.top_groups > self.num_groups:
            raise ConfigError(f"the best {self.top_groups} of {self.num_groups} groups of experts cannot be kept")


@dataclass(frozen=True, kw_only=True)
class SharedSpec:
    """A feed-forward beside a layer's experts that every token meets.

    Attributes:
        gate: its output is weighed with the sigmoid of a projection of the token.
        average: its output and the experts' are averaged rather than summed.
    """

    ffn: DenseSpec
    gate: bool = False
    average: bool = False

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases."""
        return self.ffn.num_parameters(hidden_size) + hidden_size * self.gate


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """A router over experts of equal shape.

    Attributes:
        gated, bias: of an expert, as in DenseSpec.
        alpha, limit: of the activation "swigluoai".
        weight_on_input: the router's weights scale what experts are given, not what they give.
        output_scale: of the experts' sum.
    """

    num_experts: int
    intermediate_size: int
    router: RouterSpec
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0
    weight_on_input: bool = False
    output_scale: float = 1.0
    shared: SharedSpec | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "num_experts", "intermediate_size")
        if not 1 <= self.router.top_k <= self.num_experts:
            raise ConfigError(
                f"each token goes to {self.router.top_k} experts, the config says, but there are {self.num_experts}"
            )
        if self.num_experts % self.router.num_groups:
            raise ConfigError(f"{self.num_experts} experts do not make {self.router.num_groups} equal groups")

    @property
    def expert(self) -> DenseSpec:
        """One expert."""
        return DenseSpec(
            intermediate_size=self.intermediate_size, activation=self.activation, bias=self.bias, gated=self.gated
        )

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of the router and all experts."""
        return self._beside(hidden_size) + self.num_experts * self.expert.num_parameters(hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Weights that one token meets: the router and its top-k experts, and the shared one."""
        return self._beside(hidden_size) + self.router.top_k * self.expert.num_parameters(hidden_size)

    def _beside(self, hidden_size: int) -> int:
        """Router and shared expert. A correction is not trained by gradients, and counts as no parameter."""
        shared = self.shared.num_parameters(hidden_size) if self.shared is not None else 0
        return self.num_experts * (hidden_size + self.router.bias) + shared


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One decoder layer: attention and feed-forward, each added to the residual.

    Attributes:
        norms: "pre" norms what each is given; "post" what each gives; "sandwich" both; "parallel" gives both the
            same norm of the residual.
    """

    attention: AttentionSpec
    ffn: DenseSpec | MoESpec
    norms: Literal["pre", "post", "sandwich", "parallel"] = "pre"

    @property
    def num_norms(self) -> int:
        return {"pre": 2, "post": 2, "sandwich": 4, "parallel": 1}[self.norms]


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
        norm: every norm of the model.
        tied_embeddings: the output projection is the embedding table.
        logits_bias: the output projection adds one.
        logits_softcap: logits become `cap * tanh(logits / cap)`.
        learned_positions: a table of one vector a position is added to the embeddings.
    """

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    norm: NormSpec
    tied_embeddings: bool
    layers: tuple[LayerSpec, ...]
    multipliers: Multipliers = Multipliers()
    logits_bias: bool = False
    logits_softcap: float | None = None
    learned_positions: bool = False

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
        embeddings += self.vocab_size * self.logits_bias
        embeddings += self.max_position_embeddings * self.hidden_size * self.learned_positions
        norms = self.norm.num_parameters(self.hidden_size) * (1 + sum(layer.num_norms for layer in self.layers))
        return embeddings + norms + sum(la.attention.num_parameters(self.hidden_size) for la in self.layers)
