"""Attention whose projections belong to experts: to queries and from outputs, or those to keys and values too."""

from dataclasses import dataclass
from typing import Literal

from moesaic.core.errors import ConfigError
from moesaic.models.spec.checks import require_positive
from moesaic.models.spec.feed_forward import MoESpec, RouterSpec
from moesaic.models.spec.positions import RopeSpec


@dataclass(frozen=True, kw_only=True)
class ExpertAttentionSpec:
    """Mixture of attention heads (Zhang et al. 2022, JetMoE): each expert has its own projections to queries and from
    outputs; keys and values are common to all. A token attends with each of its top-k experts' heads, and what these
    give is summed with the router's weights.

    Attributes:
        num_kv_heads: heads of keys and values, and of each expert's queries.
        scale: of the scores, before the softmax.
        rope: None where positions do not show.
        output_bias: a learned vector is added to the sum.
    """

    num_experts: int
    router: RouterSpec
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    output_bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "num_kv_heads", "head_dim")
        if not 1 <= self.router.top_k <= self.num_experts:
            raise ConfigError(
                f"each token attends with {self.router.top_k} experts, the config says, but there are "
                f"{self.num_experts}"
            )

    @property
    def num_heads(self) -> int:
        """Heads that a token attends with."""
        return self.num_kv_heads * self.router.top_k

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def projections(self) -> MoESpec:
        """An expert's two projections, as pages keep them: to its queries, and from its heads' outputs."""
        return MoESpec(num_experts=self.num_experts, intermediate_size=self.kv_size, router=self.router, gated=False)

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases."""
        return self._common(hidden_size) + self.num_experts * 2 * hidden_size * self.kv_size

    def num_active_parameters(self, hidden_size: int) -> int:
        """Those that one token meets."""
        return self._common(hidden_size) + self.router.top_k * 2 * hidden_size * self.kv_size

    def _common(self, hidden_size: int) -> int:
        """Router, keys and values, bias."""
        router = self.num_experts * (hidden_size + self.router.bias)
        return router + 2 * hidden_size * self.kv_size + hidden_size * self.output_bias


@dataclass(frozen=True, kw_only=True)
class ExpertPagedAttentionSpec:
    """Experts that attend, each with keys of its own: a token attends, in each of its top-k experts, to those tokens
    before it (itself included) that went to the same expert, and what these give is summed with the router's weights.

    Attributes:
        owned: what each expert has of its own. "qkvo": all four projections. "qk": to queries and keys; values are
            common to all, and so is the output projection, which is given the sum.
        num_heads, num_kv_heads: of each expert.
        scale: of the scores, before the softmax.
        rope: of the tokens' places in their sequence; None where positions do not show.
        qkv_bias, output_bias: whether these projections add one, whoever owns them.
    """

    num_experts: int
    router: RouterSpec
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    owned: Literal["qkvo", "qk"] = "qkvo"
    qkv_bias: bool = False
    output_bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} heads of queries cannot share {self.num_kv_heads} of keys and values")
        if not 1 <= self.router.top_k <= self.num_experts:
            raise ConfigError(
                f"each token attends with {self.router.top_k} experts, the config says, but there are "
                f"{self.num_experts}"
            )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases."""
        return self._common(hidden_size) + self.num_experts * self._of_expert(hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Those that one token meets."""
        return self._common(hidden_size) + self.router.top_k * self._of_expert(hidden_size)

    def _of_expert(self, hidden_size: int) -> int:
        queries_and_keys = (self.q_size + self.kv_size) * (hidden_size + self.qkv_bias)
        return queries_and_keys + (self._values_and_output(hidden_size) if self.owned == "qkvo" else 0)

    def _common(self, hidden_size: int) -> int:
        router = self.num_experts * (hidden_size + self.router.bias + self.router.expert_scale)
        return router + (self._values_and_output(hidden_size) if self.owned == "qk" else 0)

    def _values_and_output(self, hidden_size: int) -> int:
        return self.kv_size * (hidden_size + self.qkv_bias) + hidden_size * (self.q_size + self.output_bias)
