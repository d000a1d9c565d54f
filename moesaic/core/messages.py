"""What the API process and the engine process say to each other: msgpack of tagged structs, never pickle."""

from typing import Any

import msgspec

from moesaic.core.request import EngineRequest, SequenceUpdate
from moesaic.core.routing import MoeShape


class EngineInfo(msgspec.Struct, kw_only=True):
    """What a front end must know of a ready engine.

    Attributes:
        model_path: the checkpoint's folder; the tokeniser lies there unless the arguments say otherwise.
        names: what clients may call the model, the first is canonical.
        eos_token_ids: of the model's generation config or config.
        num_blocks, block_size: the KV cache; a sequence needs ceil(tokens / block_size) blocks.
        kv_bytes: memory of the KV cache.
        num_state_slots: places for recurrent state, one a running sequence; 0 for models without any.
        most_prompt_tokens: where prompts are computed whole, in one step; None where they may be divided.
        moe: the layers of experts; None for a model without any.
        routing_functions: names of those that the arguments gave, in order.
        description: one line for people (architecture, parameters, dtype, device).
    """

    model_path: str
    names: list[str]
    architecture: str
    description: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    num_blocks: int
    block_size: int
    kv_bytes: int = 0
    num_state_slots: int = 0
    most_prompt_tokens: int | None = None
    moe: MoeShape | None = None
    routing_functions: list[str] = []
    dtype: str
    device: str
    seed: int
    startup_seconds: float


class EngineStats(msgspec.Struct, array_like=True):
    """The engine's counters at the end of a step. Gauges are states, totals only grow."""

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    state_slots_used: int = 0  # of recurrent state, that sequences hold
    state_checkpoints: int = 0  # slots with a state that a later prompt may find
    state_slots_total: int = 0
    preemptions_total: int = 0
    prefix_queries_total: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits_total: int = 0  # of these, found
    computed_tokens_total: int = 0
    steps_total: int = 0
    step_seconds_total: float = 0.0
    forward_seconds_total: float = 0.0
    routing_seconds_total: float = 0.0  # of this, choosing experts, from logits to ids and weights


class LayerSummary(msgspec.Struct, array_like=True):
    """How one router's tokens spread over its experts in the last minute (docs/statistics.md).

    Attributes:
        layer: the decoder layer's index.
        part: what the experts are, "ffn" or "attention".
        imbalance, entropy: None where no token came.
        dead: how many experts got none, where some got any.
        compute_efficiency: rows routed over rows of the blocks that they were computed in; None where none were.
        tokens_total: choices since the start; a token with k experts counts k times.
    """

    layer: int
    part: str
    utilization: float
    imbalance: float | None
    entropy: float | None
    dead: int
    compute_efficiency: float | None
    tokens_total: int


class MoeSummary(msgspec.Struct, array_like=True):
    """What metrics follow of experts and memory; at most once a second.

    Attributes:
        time: by the engine's own clock.
        seconds: how far back the figures of the layers reach.
        recomputed_tokens_total: computed again after a preemption, and counted once.
        compute_efficiency: of all layers together.
        kv_fragmentation: share of the places in used KV blocks that hold no token; None where none is used.
        expert_fragmentation: share of the bytes of expert pages that no weight fills; None where there are none.
        expert_bytes: of expert pages.
    """

    time: float
    seconds: float
    layers: list[LayerSummary]
    recomputed_tokens_total: int = 0
    compute_efficiency: float | None = None
    kv_fragmentation: float | None = None
    expert_fragmentation: float | None = None
    expert_bytes: int = 0


class Add(msgspec.Struct, tag=True):
    """To the engine: serve this."""

    request: EngineRequest


class Abort(msgspec.Struct, tag=True):
    """To the engine: forget these sequences: (request id, index), or index -1 for all of a request's."""

    sequences: list[tuple[str, int]]


class Ask(msgspec.Struct, tag=True):
    """To the engine: a question, answered between two steps.

    Attributes:
        id: of the answer.
        kind: which of `Engine.answers` is called, with these arguments.
    """

    id: int
    kind: str
    arguments: dict[str, Any]


class Shutdown(msgspec.Struct, tag=True):
    """To the engine: end."""


class Ready(msgspec.Struct, tag=True):
    """From the engine, once."""

    info: EngineInfo


class StepEvents(msgspec.Struct, tag=True):
    """From the engine, once a step: all that happened in it; at most once a second with what its experts do."""

    updates: list[SequenceUpdate]
    stats: EngineStats
    moe: MoeSummary | None = None


class Answer(msgspec.Struct, tag=True):
    """From the engine: what was asked for, as plain data, or why there is none.

    Attributes:
        error: a message; None where there is an answer.
        kind: the error's class name.
        param: the argument at fault, as the client calls it, where one is.
    """

    id: int
    data: Any = None
    error: str | None = None
    kind: str = ""
    param: str | None = None


class Fatal(msgspec.Struct, tag=True):
    """From the engine, its last word: `kind` is the error's class name."""

    kind: str
    message: str


ToEngine = Add | Abort | Ask | Shutdown
FromEngine = Ready | StepEvents | Answer | Fatal

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """The message behind `data`; raises msgspec.DecodeError for anything else."""
    message: ToEngine = _to_engine.decode(data)
    return message


def decode_from_engine(data: bytes) -> FromEngine:
    """The message behind `data`; raises msgspec.DecodeError for anything else."""
    message: FromEngine = _from_engine.decode(data)
    return message
