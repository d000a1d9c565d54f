"""A request as the engine sees it (token ids), its sequences, and what comes back of them each step."""

from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from moesaic.core.outputs import FinishReason
from moesaic.core.routes import RoutedTokens
from moesaic.core.routing import RequestRouting
from moesaic.core.sampling_params import SamplingParams


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One client request, tokenised and checked; crosses the process boundary.

    Attributes:
        max_tokens: generated tokens at most, already bounded by the model's length.
        stop_token_ids: tokens that end a sequence: the params' own, and EOS unless ignore_eos.
        eos_token_ids: which of them count as EOS (no stop_reason is reported).
        priority: lower runs first; ties by arrival.
        seed: the draws of sequence i start from seed + i.
        cache_salt: prefix-cache entries are shared only among equal salts.
        routing: what it asks of routes, resolved; None for nothing.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    stop_token_ids: list[int]
    eos_token_ids: list[int]
    seed: int
    priority: int = 0
    arrival_time: float = 0.0
    cache_salt: str = ""
    routing: RequestRouting | None = None


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """One token stream of a request. The scheduler owns it; all its fields are plain ints and lists.

    Attributes:
        seq_id: unique in the engine.
        index: which of the request's n completions.
        token_ids: prompt, then generated.
        num_computed: leading tokens whose state is in the cache; it catches up with len(token_ids).
        num_ever: leading tokens that were computed at some time, by it or by those whose blocks it began on; after a
            preemption they are computed again.
        block_ids: the block table.
        block_hashes: prefix-cache key of each full block, as far as hashed.
        num_committed: leading blocks that were offered to the prefix cache.
        state_slot: where its recurrent state lies; -1 for none.
        num_cached: prompt tokens that the prefix cache gave at first admission.
        queue_seconds: from the request's arrival to the first admission.
        prompt_rows_done: rows of prompt log-probabilities already reported (a preempted one computes them again).
        routes_done: tokens whose routes were already reported, likewise.
        parent: the sequence of the same request whose prompt blocks this one will share.
    """

    seq_id: int
    request: EngineRequest
    index: int
    token_ids: list[int]
    num_computed: int = 0
    num_ever: int = 0
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    state_slot: int = -1
    num_cached: int | None = None
    queue_seconds: float = 0.0
    prompt_rows_done: int = 0
    routes_done: int = 0
    parent: "Sequence | None" = None
    status: SequenceStatus = SequenceStatus.WAITING
    num_preemptions: int = 0

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def order(self) -> tuple[int, float, int]:
        """Sort key of the queues: priority, arrival, sequence id."""
        return (self.request.priority, self.request.arrival_time, self.seq_id)


class LogprobRow(msgspec.Struct, array_like=True):
    """Candidates at one position: the chosen token first, then the best ones, best first."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


class SequenceUpdate(msgspec.Struct, array_like=True):
    """What one step did to one sequence; the engine sends a list of these a step.

    Attributes:
        new_token_ids: appended this step (empty for a pure error or abort).
        logprobs: one row a new token, when asked for.
        prompt_logprobs: rows of prompt positions 1.. that this step computed, in order, when asked for.
        num_cached: prompt tokens from the prefix cache.
        error: set when finish_reason is "error".
        routes: of the tokens that this step computed for the first time, when asked for; the new token is not among
            them yet.
        queue_seconds: with the first token: from the request's arrival to the first step with tokens of it.
    """

    request_id: str
    index: int
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logprobs: list[LogprobRow] | None = None
    prompt_logprobs: list[LogprobRow] | None = None
    num_cached: int = 0
    error: str | None = None
    routes: RoutedTokens | None = None
    queue_seconds: float | None = None
