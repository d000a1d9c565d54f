"""Latent attention: keys and values of all heads are made from one latent of a token."""

from dataclasses import dataclass
from typing import Literal

from moesaic.core.errors import ConfigError
from moesaic.models.spec.checks import require_positive
from moesaic.models.spec.positions import QueryTemperature, RopeSpec


@dataclass(frozen=True, kw_only=True)
class IndexerSpec:
    """A small scorer beside attention: a token sees the positions alone that it scores highest (DeepSeek-V3.2 2025,
    section 2.1, "lightning indexer").

    Attributes:
        top_k: positions that a token sees; among equal scores the lower one is taken.
        source: "own" scores; or the choice of the "last" layer that has scores of its own.
        interleaved: as of RopeSpec; what rotates are as many numbers of a head as of attention's, the first ones.
        norm_eps: of the norm of keys.
    """

    num_heads: int
    head_dim: int
    top_k: int
    source: Literal["own", "last"] = "own"
    interleaved: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "top_k")

    def matrices(self, hidden_size: int, query_rank: int) -> list[tuple[int, int]]:
        """(outputs, inputs) of the projections of queries, of keys, and to the heads' weights."""
        if self.source == "last":
            return []
        queries = self.num_heads * self.head_dim, query_rank
        return [queries, (self.head_dim, hidden_size), (self.num_heads, hidden_size)]

    def num_parameters(self, hidden_size: int, query_rank: int) -> int:
        """Weights, and the norm's bias."""
        if self.source == "last":
            return 0
        return sum(rows * cols for rows, cols in self.matrices(hidden_size, query_rank)) + 2 * self.head_dim


@dataclass(frozen=True, kw_only=True)
class LatentAttentionSpec:
    """Multi-head latent attention of one layer (MLA, DeepSeek-V2 2024, section 2.1).

    Attributes:
        latent_dim: of what keys and values are made from, normed.
        key_dim: of the part of a head's key that is made from the latent.
        rope_dim: of the part that heads share, beside it; `rope` turns it.
        value_dim: of a head's value.
        scale: of the scores, before the softmax.
        rope: None where positions do not show.
        temperature: what queries grow by with their position.
        query_rank: queries are made from a normed projection of this size; None where from the token itself.
        bias: whether the projections to the latents of queries and keys add one.
        output_bias: whether the last projection does.
        norm_eps: of the norms of latents.
        latent_scale: of the normed latent of keys and values.
        indexer: chooses the positions that a token sees, from the normed projection of queries; None for all.
    """

    num_heads: int
    latent_dim: int
    key_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    rope: RopeSpec | None
    temperature: QueryTemperature | None = None
    query_rank: int | None = None
    bias: bool = False
    output_bias: bool = False
    norm_eps: float = 1e-6
    latent_scale: float = 1.0
    indexer: IndexerSpec | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "latent_dim", "key_dim", "rope_dim", "value_dim")
        if self.query_rank is not None:
            require_positive(self, "query_rank")
        if self.indexer is None:
            return
        if self.query_rank is None:
            raise ConfigError("an indexer makes its queries from attention's normed projection, of which there is none")
        if self.rope is not None and self.indexer.head_dim < self.rope_dim:
            raise ConfigError(f"{self.rope_dim} numbers rotate, but an indexer's head has {self.indexer.head_dim}")

    @property
    def q_size(self) -> int:
        return self.num_heads * (self.key_dim + self.rope_dim)

    @property
    def cached_dim(self) -> int:
        """Numbers that are kept of a token."""
        return self.latent_dim + self.rope_dim

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the projections within, neither from nor to the residual stream."""
        expand = self.num_heads * (self.key_dim + self.value_dim), self.latent_dim
        return [expand] if self.query_rank is None else [expand, (self.q_size, self.query_rank)]

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this attention."""
        inner = self.query_rank or 0
        down = (inner or self.q_size) + self.cached_dim
        biases = (inner + self.cached_dim) * self.bias + hidden_size * self.output_bias
        return (
            hidden_size * (down + self.num_heads * self.value_dim)
            + sum(rows * cols for rows, cols in self.matrices)
            + (self.indexer.num_parameters(hidden_size, inner) if self.indexer is not None else 0)
            + biases
            + inner
            + self.latent_dim
        )
