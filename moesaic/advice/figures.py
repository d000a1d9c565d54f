"""What the tree asks about: the figures of a running server, wherever they were read. None is what nobody told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# An expert's mean share of tokens below which the busiest of many is far above it by chance alone: of N Poisson
# counts with mean m the largest is about m + sqrt(2 m ln N), for 128 experts and m = 100 1.3 times the mean.
LEAST_TOKENS = 100
FEW = 20  # of what is timed: fewer say nothing of percentiles


@dataclass(frozen=True)
class LayerLoad:
    """How one layer's tokens spread over its experts (docs/statistics.md).

    Attributes:
        name: such as `layer 3`, or `layer 3 (attention)` where those are its experts.
        num_experts: of the layer.
        choices: expert choices counted, tokens times top-k.
        utilization: share of its experts that got a token.
        imbalance: tokens of its busiest expert over the mean of its experts.
        entropy: of its tokens over experts, H / log N: 1 is even, 0 is one expert alone.
        busiest: that expert's id.
        dead: ids of experts without a token.
    """

    name: str
    num_experts: int
    choices: int
    utilization: float
    imbalance: float
    entropy: float
    busiest: int
    dead: Sequence[int] = ()

    @property
    def is_telling(self) -> bool:
        """Whether enough tokens came that their spread is no chance."""
        return self.choices >= LEAST_TOKENS * self.num_experts


@dataclass(frozen=True)
class Times:
    """Seconds of many events.

    Attributes:
        median, p95: of a histogram interpolated within its bucket.
        since: when they were counted, in words.
    """

    count: int
    mean: float
    median: float
    p95: float
    since: str = "since the start"


@dataclass(frozen=True)
class Figures:
    """All of them; counters are since the server's start, layers of the window that was asked for.

    Attributes:
        compute_efficiency: rows routed to experts over rows computed, blocks filled up included; 0 to 1.
        kv_usage, kv_fragmentation: shares of the KV cache's blocks in use, and of these blocks' places that are empty.
        expert_fragmentation: share of the bytes of expert pages that no expert fills.
        tokens_per_step: mean, prompts' and generated.
        outside_model: share of the steps' time that was not the model's.
        routing_share: share of the steps' time in choosing experts, routing functions included.
        flags: the arguments that the server runs with, where it tells them; else empty.
        steered_by: what changes routes for all requests: the active profile, functions, the server's top-k.
    """

    model: str = ""
    layers: Sequence[LayerLoad] = ()
    compute_efficiency: float | None = None
    kv_usage: float | None = None
    kv_fragmentation: float | None = None
    expert_fragmentation: float | None = None
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    tokens_per_step: float | None = None
    step_seconds: float | None = None
    outside_model: float | None = None
    routing_share: float | None = None
    first_token: Times | None = None
    inter_token: Times | None = None
    queue: Times | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    steered_by: Sequence[str] = ()

    @property
    def telling_layers(self) -> list[LayerLoad]:
        """Layers with enough tokens to say something of their spread."""
        return [layer for layer in self.layers if layer.is_telling]
