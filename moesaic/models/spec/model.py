"""A model: its norms, its layers, and what stands around them."""

from dataclasses import dataclass, replace
from typing import Literal

from moesaic.core.errors import ConfigError
from moesaic.models.spec.attention import AttentionSpec
from moesaic.models.spec.checks import require_positive
from moesaic.models.spec.expert_attention import ExpertAttentionSpec, ExpertPagedAttentionSpec
from moesaic.models.spec.feed_forward import DenseSpec, MoESpec
from moesaic.models.spec.latent import LatentAttentionSpec
from moesaic.models.spec.recurrent import RecurrentSpec


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """Normalisation of a vector.

    Attributes:
        kind: "rms" divides by the root mean square; "layer" takes the mean away first.
        offset: what is added to the stored weight (1 where it is stored as its difference from 1).
        factor: what the stored weight is multiplied by.
        bias: whether a "layer" norm adds one.
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    factor: float = 1.0
    bias: bool = False

    def num_parameters(self, size: int) -> int:
        """Weights, and biases if there are any."""
        return size * (1 + self.bias)


# What mixes tokens; further kinds join with `|`.
MixerSpec = AttentionSpec | ExpertAttentionSpec | ExpertPagedAttentionSpec | LatentAttentionSpec | RecurrentSpec


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One decoder layer: attention and feed-forward, each added to the residual.

    Attributes:
        attention: whatever mixes tokens; None where the layer is a feed-forward alone.
        ffn: None where the layer only mixes tokens.
        norms: "pre" norms what each is given; "post" what each gives; "sandwich" both; "ffn_sandwich" what each is
            given and what the feed-forward gives; "parallel" gives both the same norm of the residual; with "residual"
            the norm of what each is given is the residual from there on.
        attention_shares, ffn_shares: factors of the residual and of what each gives, where "residual" norms add them.
        norm: of this layer, where it is not the model's.
        shortcut: experts beside a dense feed-forward, which are given the same; what they give joins the residual
            stream behind the next layer's feed-forward (ScMoE, Cai et al. 2024, https://arxiv.org/abs/2404.05019).
        scalar: a learned number multiplies the residual stream after the layer.
    """

    attention: MixerSpec | None
    ffn: DenseSpec | MoESpec | None
    norms: Literal["pre", "post", "sandwich", "ffn_sandwich", "parallel", "residual"] = "pre"
    attention_shares: tuple[float, float] = (1.0, 1.0)
    ffn_shares: tuple[float, float] = (1.0, 1.0)
    norm: NormSpec | None = None
    shortcut: MoESpec | None = None
    scalar: bool = False

    def __post_init__(self) -> None:
        both = self.attention is not None and self.ffn is not None
        if not both and (self.norms in ("parallel", "residual") or self.attention is self.ffn):
            raise ConfigError("a layer mixes tokens, or is a feed-forward, or both; these norms are of both")
        other = isinstance(self.ffn, MoESpec) or not both or self.norms in ("parallel", "residual")
        if self.shortcut is not None and other:
            raise ConfigError("a layer has experts as its feed-forward or on a shortcut, one after its attention")

    @property
    def moe(self) -> MoESpec | None:
        """The layer's experts, wherever they are."""
        return self.ffn if isinstance(self.ffn, MoESpec) else self.shortcut

    @property
    def feed_forwards(self) -> list[DenseSpec | MoESpec]:
        """All that a token meets beside attention."""
        return [part for part in (self.ffn, self.shortcut) if part is not None]

    @property
    def parts(self) -> list[MixerSpec | DenseSpec | MoESpec]:
        """All that a token meets."""
        return [*([] if self.attention is None else [self.attention]), *self.feed_forwards]

    @property
    def is_plain(self) -> bool:
        """Attention, then feed-forward, each given a norm of the stream, each added to it."""
        both = self.attention is not None and self.ffn is not None
        return both and self.norms in ("pre", "sandwich") and self.shortcut is None and not self.scalar

    @property
    def num_norms(self) -> int:
        if self.norms == "parallel":
            return 1
        of_attention, of_ffn = {"sandwich": (2, 2), "ffn_sandwich": (1, 2)}.get(self.norms, (1, 1))
        return of_attention * (self.attention is not None) + of_ffn * (self.ffn is not None)


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
        residual: "sum" adds what each part gives; "root_mean" keeps that sum divided by the square root of how many
            it is of, the embedding included.
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
    residual: Literal["sum", "root_mean"] = "sum"

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "hidden_size", "max_position_embeddings")
        if not self.layers:
            raise ConfigError("the config gives no layers")
        if self.residual == "root_mean" and any(not la.is_plain for la in self.layers):
            raise ConfigError(
                "a stream that is divided by a root runs through layers with two parts, each behind a norm"
            )
        if self.layers[-1].shortcut is not None:
            raise ConfigError("the last layer has a shortcut, but no layer follows that it could lead to")

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        size = self.hidden_size
        parts = (part.num_parameters(size) for la in self.layers for part in la.parts)
        return self._shared_parameters() + sum(parts)

    @property
    def num_active_parameters(self) -> int:
        """Parameters less those of experts that a token is not routed to."""
        size = self.hidden_size
        parts = (_active(part, size) for la in self.layers for part in la.parts)
        return self._shared_parameters() + sum(parts)

    @property
    def shares_prompts(self) -> bool:
        """A sequence may begin on what another one computed: all that is kept is in blocks of the scheduler's."""
        return not any(isinstance(layer.attention, ExpertPagedAttentionSpec) for layer in self.layers)

    def with_top_k(self, top_k: int) -> "ModelSpec":
        """The same model, whose tokens go to `top_k` experts in each layer of them. Raises ConfigError."""
        if not any(layer.moe for layer in self.layers):
            raise ConfigError(f"moe_top_k is {top_k}, but this model has no experts: leave it out")
        return replace(self, layers=tuple(_with_top_k(i, layer, top_k) for i, layer in enumerate(self.layers)))

    def _shared_parameters(self) -> int:
        """Embeddings, norms and scalars of layers."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        embeddings += self.vocab_size * self.logits_bias
        embeddings += self.max_position_embeddings * self.hidden_size * self.learned_positions
        norms = self.norm.num_parameters(self.hidden_size) * (1 + sum(layer.num_norms for layer in self.layers))
        return embeddings + norms + sum(layer.scalar for layer in self.layers)


def _with_top_k(index: int, layer: LayerSpec, top_k: int) -> LayerSpec:
    moe = layer.moe
    if moe is None:
        return layer
    if top_k > moe.num_choices:
        raise ConfigError(f"moe_top_k is {top_k}, but layer {index} has {moe.num_choices} experts")
    changed = replace(moe, router=replace(moe.router, top_k=top_k))
    return replace(layer, ffn=changed) if moe is layer.ffn else replace(layer, shortcut=changed)


def _active(part: MixerSpec | DenseSpec | MoESpec, hidden_size: int) -> int:
    """Weights of a part of a layer that one token meets."""
    if isinstance(part, ExpertAttentionSpec | ExpertPagedAttentionSpec | DenseSpec | MoESpec):
        return part.num_active_parameters(hidden_size)
    return part.num_parameters(hidden_size)
