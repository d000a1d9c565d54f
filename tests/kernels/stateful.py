"""Batches for tests of kernels that keep a state: streams cut into chunks, each sequence with a slot of its own."""

import torch

from moesaic.core.batch import Batch

NUM_SLOTS = 7


def stateful_batch(chunks, slots):
    """The batch of a step.

    Args:
        chunks: for each sequence, how many of its tokens were there before, and how many are computed.
        slots: of each sequence.
    """
    counts = [count for _, count in chunks]
    positions = [start + i for start, count in chunks for i in range(count)]
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        slots=empty,
        query_start=torch.tensor([0, *counts]).cumsum(0),
        seq_lens=torch.tensor([sum(chunk) for chunk in chunks]),
        block_tables=empty.view(0, 0),
        table_rows=empty,
        logits_rows=empty,
        query_lens_host=counts,
        seq_lens_host=[sum(chunk) for chunk in chunks],
        table_rows_host=[],
        seq_ids=list(range(len(chunks))),
        state_slots=torch.tensor(slots, dtype=torch.int64),
    )


def dirty(*shape):
    """States `[NUM_SLOTS, *shape]` that hold what must not be read."""
    return torch.full((NUM_SLOTS, *shape), float("nan"))


def in_chunks(step, length, sizes):
    """Run one sequence of `length` tokens in chunks of `sizes` (the last one repeats), in slot 3.

    Args:
        step: batch, rows (a slice of the sequence) -> output of these rows.

    Returns:
        All outputs, one after the other.
    """
    outs, at = [], 0
    for turn in range(length):
        count = min(sizes[min(turn, len(sizes) - 1)], length - at)
        if not count:
            break
        outs.append(step(stateful_batch([(at, count)], [3]), slice(at, at + count)))
        at += count
    return torch.cat(outs)


# Steps as (chunks, slots): whole prompts, single tokens, and both beside sequences without tokens.
STEPS = {
    "a prompt": ([(0, 9)], [2]),
    "prompts": ([(0, 5), (0, 1), (0, 17)], [6, 0, 3]),
    "decode": ([(4, 1), (0, 1), (30, 1), (1, 1)], [1, 5, 4, 2]),
    "mixed": ([(3, 6), (0, 2), (7, 1), (2, 0), (1, 2)], [4, 1, 0, 6, 3]),
}
