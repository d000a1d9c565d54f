"""Attention over keys and values that are kept for every token."""

from dataclasses import dataclass
from typing import Literal

from moesaic.core.errors import ConfigError
from moesaic.models.spec.checks import require_positive
from moesaic.models.spec.positions import QueryTemperature, RopeSpec


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """What the heads give is multiplied by a function of a projection of the token (Qiu et al. 2025), before the output
    projection.

    Attributes:
        bias: of the projection.
        head_bias: a learned number a head is added to its gates.
        per: "element" has a gate for each number of each head; "head" one for all of a head.
    """

    function: Literal["sigmoid", "softplus"] = "sigmoid"
    per: Literal["element", "head"] = "element"
    bias: bool = False
    head_bias: bool = False

    def __post_init__(self) -> None:
        if self.bias and self.head_bias:
            raise ConfigError("gates have a bias each or one a head, not both")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer.

    Attributes:
        scale: of the scores, before the softmax.
        qkv_bias, output_bias: whether these projections add one.
        qk_norm: norm of queries and keys, per "head" or over all heads together ("full"); "unit" is per head, without
            a learned weight.
        qk_norm_last: after rope rather than before.
        clip_qkv: bound of the absolute value of queries, keys and values, after a norm that comes first.
        window: a token sees this many tokens, itself included; None for all before it.
        window_kind: "sliding": the last ones; "chunked": those of its own chunk, positions being cut at multiples of
            the window.
        temperature: what queries grow by with their position.
        rope: None where positions do not show.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: each head has a learned logit that takes weight and gives nothing.
        value_dim: of a value, where it is not head_dim.
        value_scale: of what values give.
        output_gate: what the heads' output is multiplied with.
        values: "projected" by weights of their own, or the "keys" as they are projected, before norm and rotation.
        value_norm: values are divided by the root mean square of their head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full", "unit"] | None = None
    qk_norm_last: bool = False
    clip_qkv: float | None = None
    window: int | None = None
    window_kind: Literal["sliding", "chunked"] = "sliding"
    temperature: QueryTemperature | None = None
    softcap: float | None = None
    sinks: bool = False
    value_dim: int | None = None
    value_scale: float = 1.0
    output_gate: GateSpec | None = None
    values: Literal["projected", "keys"] = "projected"
    value_norm: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} heads of queries cannot share {self.num_kv_heads} of keys and values")
        if self.value_dim is not None:
            require_positive(self, "value_dim")
            if self.values == "keys" and self.value_dim != self.head_dim:
                raise ConfigError(f"values that are keys have {self.head_dim} numbers, not {self.value_dim}")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def value_size(self) -> int:
        """Numbers in all values of a token."""
        return self.num_kv_heads * (self.value_dim or self.head_dim)

    @property
    def mixed_size(self) -> int:
        """Numbers in what all heads give: the output projection's input."""
        return self.num_heads * (self.value_dim or self.head_dim)

    @property
    def gate_size(self) -> int:
        """Gates of a token; 0 where there are none."""
        if self.output_gate is None:
            return 0
        return self.mixed_size if self.output_gate.per == "element" else self.num_heads

    def num_parameters(self, hidden_size: int) -> int:
        """Weights and biases of this attention."""
        projected = self.value_size if self.values == "projected" else 0
        qkv = self.q_size + self.kv_size + projected
        biases = qkv * self.qkv_bias + hidden_size * self.output_bias
        if self.output_gate is not None:
            biases += self.gate_size * self.output_gate.bias + self.num_heads * self.output_gate.head_bias
        norm_sizes = {"head": 2 * self.head_dim, "full": self.q_size + self.kv_size}
        norms = norm_sizes.get(self.qk_norm or "", 0)
        return hidden_size * (qkv + self.mixed_size + self.gate_size) + biases + norms + self.num_heads * self.sinks
