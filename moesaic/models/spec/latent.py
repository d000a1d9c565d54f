"""Latent attention: keys and values of all heads are made from one latent of a token."""

from dataclasses import dataclass

from moesaic.models.spec.checks import require_positive
from moesaic.models.spec.positions import QueryTemperature, RopeSpec


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

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "latent_dim", "key_dim", "rope_dim", "value_dim")
        if self.query_rank is not None:
            require_positive(self, "query_rank")

    @property
    def q_size(self) -> int:
        return self.num_heads * (self.key_dim + self.rope_dim)

    @property
    def cached_dim(self) -> int:
        """Numbers that are kept of a token."""
        return self.latent_dim + self.rope_dim

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of all projections but those from and to the residual stream."""
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
            + biases
            + inner
            + self.latent_dim
        )
