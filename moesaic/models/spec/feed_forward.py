"""Feed-forwards: dense ones, and routers over experts."""

from dataclasses import dataclass
from typing import Literal

from moesaic.core.errors import ConfigError
from moesaic.models.spec.checks import require_positive

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swigluoai", "silu_clamped"]


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """A feed-forward: down(act(gate(x)) * up(x)), or, not gated, down(act(up(x))).

    Attributes:
        limit: of the activations "swigluoai" and "silu_clamped".
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    gated: bool = True
    limit: float = 7.0

    def __post_init__(self) -> None:
        require_positive(self, "intermediate_size")

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
        scoring: of logits; "sparsemixer" weighs each choice among those left that are not far below it.
        order: "score_then_select" scores all experts and keeps the best; "select_then_score" keeps the best logits and
            scores these alone.
        renormalize: divide the kept weights by `max(sum + epsilon, floor)`.
        bias: the projection to logits adds one.
        correction: a learned number an expert is added to the scores for the choice alone.
        num_groups, top_groups: the choice is among the experts of the best groups; a group's score is its "max" or the
            sum of its "top2"; experts outside count as masked_score.
        scale: of the weights, after renormalising.
        expert_scale: a learned number an expert multiplies its weight.
        jitter: of "sparsemixer": half the relative distance from which on a logit is far below another.
        cap: logits become `cap * tanh(logits / cap)` first.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid", "sqrt_softplus", "identity", "sparsemixer"] = "softmax"
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
    jitter: float = 0.0
    cap: float | None = None
    expert_scale: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_groups", "top_groups")
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
        alpha, limit: of the activation "swigluoai"; the limit also of "silu_clamped".
        weight_on_input: the router's weights scale what experts are given, not what they give.
        output_scale: of the experts' sum.
        output_bias: a learned vector is added to what all give together.
        identity_experts: so many more may be chosen, behind the others; they give what they are given.
        norms: "layer": all parts are given what the layer's norm gives. "own": router and experts are given the
            residual, each through a norm of its own, whose weights of the router's are stored times the square root of
            the hidden size; and what experts and shared expert give is normed before it is summed.
        latent_size: experts are given a projection of the token to so few numbers, and what they give together is
            projected back; None where they are given the token.
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
    output_bias: bool = False
    norms: Literal["layer", "own"] = "layer"
    shared: SharedSpec | None = None
    identity_experts: int = 0
    latent_size: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "intermediate_size")
        if self.latent_size is not None:
            require_positive(self, "latent_size")
            if self.identity_experts or self.norms == "own":
                raise ConfigError(
                    "experts between projections have no norms of their own, and none gives back its token"
                )
        if not 1 <= self.router.top_k <= self.num_choices:
            raise ConfigError(
                f"each token goes to {self.router.top_k} experts, the config says, but there are {self.num_choices}"
            )
        if self.num_choices % self.router.num_groups:
            raise ConfigError(f"{self.num_choices} experts do not make {self.router.num_groups} equal groups")
        plain = self.shared is not None and not (self.shared.gate or self.shared.average)
        if self.norms == "own" and not (plain and self.output_scale == 1.0 and not self.output_bias):
            raise ConfigError("experts with norms of their own stand beside a plain shared one, without scale or bias")

    @property
    def num_choices(self) -> int:
        """Experts that the router chooses among."""
        return self.num_experts + self.identity_experts

    @property
    def expert(self) -> DenseSpec:
        """One expert."""
        return DenseSpec(
            intermediate_size=self.intermediate_size, activation=self.activation, bias=self.bias, gated=self.gated
        )

    def width(self, hidden_size: int) -> int:
        """Numbers that experts are given, and give."""
        return hidden_size if self.latent_size is None else self.latent_size

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of the router and all experts."""
        return self._beside(hidden_size) + self.num_experts * self.expert.num_parameters(self.width(hidden_size))

    def num_active_parameters(self, hidden_size: int) -> int:
        """Weights that one token meets: the router and its top-k experts, and the shared one. Of identity experts, as
        many as uniform routing would choose."""
        chosen = self.router.top_k * self.num_experts // self.num_choices
        return self._beside(hidden_size) + chosen * self.expert.num_parameters(self.width(hidden_size))

    def _beside(self, hidden_size: int) -> int:
        """Router and shared expert. A correction is not trained by gradients, and counts as no parameter."""
        shared = self.shared.num_parameters(hidden_size) if self.shared is not None else 0
        router = self.num_choices * (hidden_size + self.router.bias + self.router.expert_scale)
        beside = self.output_bias + 4 * (self.norms == "own") + 2 * (self.latent_size or 0)
        return router + shared + hidden_size * beside
