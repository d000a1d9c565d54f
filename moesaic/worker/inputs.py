"""The worker's copy of the running sequences, and the batch tensors that a plan makes of it.

Tokens and block tables live in two arrays with a row a sequence, so that any mix of chunks and single tokens
becomes a batch by a few vectorised look-ups; a step sends only what is new.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from moesaic.core.batch import Batch
from moesaic.core.sampling_params import SamplingParams
from moesaic.core.step import Advance, NewSequence, StepPlan

IntArray = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class SequenceState:
    """One running sequence as the worker knows it; `row` is its place in the table."""

    row: int
    prompt_len: int
    length: int
    num_blocks: int
    params: SamplingParams
    stop_token_ids: list[int]
    seed: int
    prompt_logprobs: int | None


class SequenceTable:
    """Rows of tokens `[max_num_seqs, max_model_len + 1]` and block ids `[max_num_seqs, max_blocks]`."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: str) -> None:
        self.block_size = block_size
        self.device = device
        # zeros come from untouched pages of the system: rows cost memory only as far as they are used
        self.tokens: IntArray = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int64)
        self.blocks: IntArray = np.zeros((max_num_seqs, -(-max_model_len // block_size) + 1), dtype=np.int64)
        self.states: dict[int, SequenceState] = {}
        self._free_rows = list(range(max_num_seqs))[::-1]

    def apply(self, plan: StepPlan) -> None:
        """Forget, learn, and append blocks, as the plan says."""
        for seq_id in plan.gone:
            state = self.states.pop(seq_id, None)
            if state is not None:
                self._free_rows.append(state.row)
        for new in plan.new:
            self.states[new.seq_id] = self._learn(new)
        for item in plan.advance:
            if item.new_block_ids:
                state = self.states[item.seq_id]
                end = state.num_blocks + len(item.new_block_ids)
                self.blocks[state.row, state.num_blocks : end] = item.new_block_ids
                state.num_blocks = end

    def _learn(self, new: NewSequence) -> SequenceState:
        row = self._free_rows.pop()
        length = len(new.token_ids)
        self.tokens[row, :length] = new.token_ids
        return SequenceState(
            row, new.prompt_len, length, 0, new.params, new.stop_token_ids, new.seed, new.prompt_logprobs
        )

    def append(self, seq_id: int, token_id: int) -> None:
        """A sampled token becomes the sequence's next input."""
        state = self.states[seq_id]
        self.tokens[state.row, state.length] = token_id
        state.length += 1

    def token_ids(self, state: SequenceState) -> IntArray:
        """`[length]`, a view: prompt and output so far."""
        return self.tokens[state.row, : state.length]

    def batch(self, advance: list[Advance]) -> Batch:
        """The batch tensors of a plan; `apply` has run. They are views of one tensor: one copy to a device."""
        states = [self.states[item.seq_id] for item in advance]
        rows = np.array([state.row for state in states], dtype=np.int64)
        starts = np.array([item.start for item in advance], dtype=np.int64)
        query_lens = [item.num_tokens for item in advance]
        query_start = np.array([0, *accumulate(query_lens)], dtype=np.int64)
        seq_lens = starts + query_lens
        token_rows, positions = self._rows_and_positions(rows, starts, query_lens, query_start)
        blocks, offsets = np.divmod(positions, self.block_size)
        max_blocks = -(-int(seq_lens.max()) // self.block_size)
        parts = (
            self.tokens[token_rows, positions],
            positions,
            self.blocks[token_rows, blocks] * self.block_size + offsets,
            query_start,
            seq_lens,
            self._logits_rows(advance, states, query_start),
            np.arange(len(advance)),
            self.blocks[rows, :max_blocks].ravel(),
        )
        packed = torch.from_numpy(np.concatenate(parts)).to(self.device)
        pieces = packed.split([len(part) for part in parts])
        token_ids, position, slots, query_starts, lens, logits_rows, table_rows, tables = pieces
        return Batch(
            token_ids=token_ids,
            positions=position,
            slots=slots,
            query_start=query_starts,
            seq_lens=lens,
            block_tables=tables.view(len(advance), max_blocks),
            table_rows=table_rows,
            logits_rows=logits_rows,
            query_lens_host=query_lens,
            seq_lens_host=seq_lens.tolist(),
            table_rows_host=list(range(len(advance))),
            seq_ids=[item.seq_id for item in advance],
        )

    @staticmethod
    def _rows_and_positions(
        rows: IntArray, starts: IntArray, query_lens: list[int], query_start: IntArray
    ) -> tuple[IntArray, IntArray]:
        """`[T]` each: a token's row of the table, and its position in the sequence."""
        num_tokens = int(query_start[-1])
        if num_tokens == len(rows):  # one token each
            return rows, starts
        positions = np.arange(num_tokens) + np.repeat(starts - query_start[:-1], query_lens)
        return np.repeat(rows, query_lens), positions

    @staticmethod
    def _logits_rows(advance: list[Advance], states: list[SequenceState], query_start: IntArray) -> IntArray:
        """Rows whose logits are wanted, sequence by sequence: prompt rows to report, then the sampling row."""
        if all(state.prompt_logprobs is None for state in states):
            last = query_start[1:] - 1
            return last if all(item.samples for item in advance) else last[[item.samples for item in advance]]
        rows: list[int] = []
        for item, state, first in zip(advance, states, query_start.tolist(), strict=False):
            rows.extend(range(first, first + num_prompt_rows(item, state)))
            if item.samples:
                rows.append(first + item.num_tokens - 1)
        return np.array(rows, dtype=np.int64)


def num_prompt_rows(item: Advance, state: SequenceState) -> int:
    """How many of a chunk's rows predict a prompt token whose log-probability was asked for."""
    if state.prompt_logprobs is None:
        return 0
    return max(0, min(item.start + item.num_tokens, state.prompt_len - 1) - item.start)
