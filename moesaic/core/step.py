"""The messages between engine and worker: one plan and one result a step. Plain data, so that they can cross
a process boundary without pickle; in one process the objects themselves are handed over."""

import msgspec

from moesaic.core.request import LogprobRow
from moesaic.core.routes import RoutedTokens
from moesaic.core.routing import RequestRouting
from moesaic.core.sampling_params import SamplingParams


class NewSequence(msgspec.Struct, array_like=True):
    """A sequence that the worker does not know (or no longer, after preemption), with all it needs.

    Attributes:
        prompt_logprobs: how many best tokens to report at each prompt position, or None.
        state_slot: where its recurrent state lies, -1 for models without any.
        routing: what its request asks of routes; None for nothing.
        request_id: of its request.
    """

    seq_id: int
    token_ids: list[int]
    prompt_len: int
    params: SamplingParams
    stop_token_ids: list[int]
    seed: int
    prompt_logprobs: int | None = None
    state_slot: int = -1
    routing: RequestRouting | None = None
    request_id: str = ""


class Advance(msgspec.Struct, array_like=True):
    """Compute tokens [start, start + num_tokens) of a sequence.

    Attributes:
        new_block_ids: appended to the worker's copy of the block table.
        samples: the sequence catches up with its length in this step, so a next token is drawn.
        again: how many of these tokens, the first ones, were computed before: the sequence was preempted since.
    """

    seq_id: int
    start: int
    num_tokens: int
    new_block_ids: list[int]
    samples: bool
    again: int = 0


class StepPlan(msgspec.Struct):
    """What the scheduler decided for one step.

    Attributes:
        gone: sequences to forget (finished, aborted or preempted), before `new` is read.
        new: sequences to learn, before `advance` is read.
        advance: the batch, in order.
        restores, saves: recurrent state to copy from slot to slot (source, target), in order, before the step (to new
            sequences) and after it (from sequences to checkpoints).
        records: the routes of all tokens are wanted.
    """

    gone: list[int]
    new: list[NewSequence]
    advance: list[Advance]
    restores: list[tuple[int, int]] = []
    saves: list[tuple[int, int]] = []
    records: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(a.num_tokens for a in self.advance)


class Sampled(msgspec.Struct, array_like=True):
    """The worker's answer for one sequence of the plan: a token if it samples, and what else was asked for."""

    seq_id: int
    token_id: int | None
    logprobs: LogprobRow | None = None
    prompt_logprobs: list[LogprobRow] | None = None
    error: str | None = None
    routes: RoutedTokens | None = None  # of all tokens of the sequence in this step


class StepResult(msgspec.Struct):
    """One entry for each sequence that sampled or has prompt log-probabilities or routes to report.

    Attributes:
        forward_seconds: time inside the model, for the engine's own overhead.
        routing_seconds: of this, time that choosing experts took, from logits to ids and weights, in all layers.
        routes: of all tokens, in the order of the plan, as if they were one sequence's; where the plan asks for them.
    """

    sampled: list[Sampled]
    forward_seconds: float
    routing_seconds: float = 0.0
    routes: RoutedTokens | None = None
