"""What the driver and a peer's process say to each other: JSON lines, one request at a time.

Standard library only: a peer may live in an environment of its own, where moesaic is not installed.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import IO, Any


@dataclass(frozen=True, kw_only=True)
class Load:
    """To the peer, once: the model to load.

    Attributes:
        max_len: tokens of the longest sequence, prompt and output.
        max_batch: most sequences at once.
        quantization: a name that moesaic gives to formats of weights, or None: they are kept in `dtype`.
        gguf: the same model, at the same bits, as llama.cpp reads it.
        w8a8: the same model in W8A8, as vLLM reads it.
    """

    model: str
    dtype: str
    threads: int
    max_len: int
    max_batch: int
    quantization: str | None = None
    gguf: str | None = None
    w8a8: str | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """To the peer: complete these prompts (of one length) as one batch, greedily, to exactly `output_len` tokens."""

    prompts: list[list[int]]
    output_len: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """From the peer.

    Attributes:
        seconds: from the batch's arrival to its last token.
        first_token_seconds: until every sequence had its first token.
        shares: of the floor, by metric, where the peer measures the machine's limits beside its work.
    """

    seconds: float
    first_token_seconds: float
    token_ids: list[list[int]]
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From the peer, in answer to Load: `version` names what runs, `seconds` is what loading took."""

    version: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Refused:
    """From the peer, in answer to anything: why it cannot."""

    reason: str


Message = Load | Work | Done | Ready | Refused
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Load, Work, Done, Ready, Refused)}


def send(stream: IO[str], message: Message) -> None:
    """Write one message."""
    stream.write(json.dumps([type(message).__name__, asdict(message)]) + "\n")
    stream.flush()


def receive(stream: IO[str]) -> Message | None:
    """Read one message; None when the other side has gone."""
    line = stream.readline()
    if not line:
        return None
    kind, values = json.loads(line)
    message: Message = KINDS[kind](**values)
    return message
