"""The kernels that keep a state for each sequence, beside the memory's bandwidth: shapes of released models.

A decode step must read and write each sequence's state once: their bytes over the bandwidth of a plain read is the
floor, measured in the same run. Slots take turns over so much memory that no state is in a cache when its turn comes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.cpu import recurrent
from moesaic.kernels.state_cache import StateSpec, matrix_state

SLOTS_BYTES = 256 << 20
SEQUENCES = (1, 4, 16)


@dataclass(frozen=True)
class Kind:
    """A layer's scan.

    Attributes:
        state: the shape of a slot.
        inputs: shapes of the inputs, less their first dimension.
        weights: shapes of what does not change.
    """

    function: Callable[..., Tensor]
    state: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...]


def _delta(heads: int, groups: int, dim: int, channels: int) -> Kind:
    inputs = (groups, dim), (groups, dim), (heads, dim), (heads, channels), (heads, 1)
    return Kind(recurrent.gated_delta, matrix_state(heads, dim, dim), inputs, ((heads,), (heads * channels,)))


KINDS = {
    "gated_delta 32x128x128": _delta(32, 16, 128, 1),  # Qwen3-Next
    "gated_delta by channel 32x128x128": _delta(32, 32, 128, 128),  # Kimi Linear
    "ssd_scan 128x128x64": Kind(  # Granite 4 small
        recurrent.ssd_scan, matrix_state(128, 128, 64), ((128, 64), (1, 128), (1, 128), (128, 1)), ((128,),) * 3
    ),
    "linear_attention 64x128x128": Kind(  # MiniMax-Text-01
        recurrent.linear_attention, matrix_state(64, 128, 128), ((64, 128),) * 3, ((64,),)
    ),
    "selective_scan 16x8192": Kind(  # Jamba 1.5 mini
        recurrent.selective_scan,
        matrix_state(1, 16, 8192),
        ((8192,), (8192,), (16,), (16,), (8192,)),
        ((256, 16, 32), (8192,), (8192,)),
    ),
}


def decode_call(kind: Kind, sequences: int) -> tuple[Callable[[], object], float]:
    """A call that advances so many sequences by a token, other ones each time; and the bytes that it moves."""
    spec = StateSpec({"state": kind.state})
    slots = max(2, SLOTS_BYTES // (spec.bytes_per_slot * sequences)) * sequences
    state = spec.allocate(slots).parts["state"]
    state.zero_()
    batches = cycle([_batch([1] * sequences, range(i, i + sequences), 5) for i in range(0, slots, sequences)])
    call = _call(kind, sequences)
    return lambda: call(state, next(batches)), 2.0 * spec.bytes_per_slot * sequences


def _call(kind: Kind, tokens: int) -> Callable[[Tensor, Batch], Tensor]:
    inputs = [torch.randn(tokens, *shape) for shape in kind.inputs]
    weights = [torch.rand(shape) for shape in kind.weights]
    return lambda state, batch: kind.function(*inputs, *weights, state, batch)


def _batch(counts: list[int], slots: "range | list[int]", start: int) -> Batch:
    tokens, empty = sum(counts), torch.zeros(0, dtype=torch.int64)
    return Batch(
        token_ids=torch.zeros(tokens, dtype=torch.int64),
        positions=torch.cat([torch.arange(start, start + count) for count in counts]),
        slots=empty,
        query_start=torch.tensor([0, *counts]).cumsum(0),
        seq_lens=empty,
        block_tables=empty.view(0, 0),
        table_rows=empty,
        logits_rows=empty,
        query_lens_host=counts,
        seq_lens_host=counts,
        table_rows_host=[],
        seq_ids=list(slots),
        state_slots=torch.tensor(list(slots)),
    )
