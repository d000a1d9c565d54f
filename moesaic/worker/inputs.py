"""The worker's copy of the running sequences, and the batch tensors that a plan makes of it.

Tokens and block tables live in two arrays with a row a sequence, so that any mix of chunks and single tokens
becomes a batch by a few vectorised look-ups; a step sends only what is new. A step in which each sequence has one token
is written into buffers that stay, so that a recording of it can be replayed (`worker.recorded`).
"""

from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from moesaic.core.batch import Batch
from moesaic.core.sampling_params import SamplingParams
from moesaic.core.step import Advance, NewSequence, StepPlan
from moesaic.worker.sampler import Sampler

IntArray = npt.NDArray[np.int64]

MOST_REPLAYED = 64  # sequences of a step that may be replayed; larger ones are not held up by Python


@dataclass(eq=False, slots=True)
class SequenceState:
    """One running sequence as the worker knows it; `row` is its place in the table."""

    row: int
    prompt_len: int
    length: int
    num_blocks: int
    params: SamplingParams
    prompt_logprobs: int | None


class SequenceTable:
    """Rows of tokens `[max_num_seqs, max_model_len + 1]` and block ids `[max_num_seqs, max_blocks]`."""

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, device: str, recurrent: bool = False
    ) -> None:
        self.block_size = block_size
        self.device = device
        # zeros come from untouched pages of the system: rows cost memory only as far as they are used
        self.tokens: IntArray = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int64)
        self.blocks: IntArray = np.zeros((max_num_seqs, -(-max_model_len // block_size) + 1), dtype=np.int64)
        # where each row's recurrent state lies; None for models without any
        self.state_slots: IntArray | None = np.zeros(max_num_seqs, dtype=np.int64) if recurrent else None
        self.sampler = Sampler(self.tokens)
        self.states: dict[int, SequenceState] = {}
        self._free_rows = list(range(max_num_seqs))[::-1]
        self.singles = (
            SingleTokens(self.blocks, min(max_num_seqs, MOST_REPLAYED), self.state_slots) if device == "cpu" else None
        )

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
        if self.state_slots is not None:
            self.state_slots[row] = new.state_slot
        self.sampler.learn(row, new.params, new.seed, new.prompt_len, new.stop_token_ids)
        return SequenceState(row, new.prompt_len, length, 0, new.params, new.prompt_logprobs)

    def append(self, states: list[SequenceState], tokens: list[int | None]) -> None:
        """Sampled tokens become their sequences' next inputs; None leaves a sequence as it is."""
        for state, token in zip(states, tokens, strict=True):
            if token is not None:
                self.tokens[state.row, state.length] = token
                state.length += 1

    def token_ids(self, state: SequenceState) -> IntArray:
        """`[length]`, a view: prompt and output so far."""
        return self.tokens[state.row, : state.length]

    def batch(self, advance: list[Advance]) -> Batch:
        """The batch tensors of a plan; `apply` has run."""
        states = [self.states[item.seq_id] for item in advance]
        rows = [state.row for state in states]
        starts = [item.start for item in advance]
        query_lens = [item.num_tokens for item in advance]
        seq_ids = [item.seq_id for item in advance]
        seq_lens = [start + count for start, count in zip(starts, query_lens, strict=True)]
        if self.singles is not None and len(advance) <= self.singles.capacity and sum(query_lens) == len(advance):
            batch = self.singles.fill(self.tokens, self.block_size, rows, starts)
            batch.seq_lens_host, batch.table_rows_host, batch.seq_ids = seq_lens, rows, seq_ids
            if all(item.samples for item in advance) and all(state.prompt_logprobs is None for state in states):
                return batch
            logits_rows = self._logits_rows(advance, states, np.arange(len(advance) + 1))
            return replace(batch, replayable=False, logits_rows=torch.from_numpy(logits_rows))
        return self._mixed(advance, states, rows, starts, query_lens, seq_lens, seq_ids)

    def _mixed(
        self,
        advance: list[Advance],
        states: list[SequenceState],
        rows: list[int],
        starts: list[int],
        query_lens: list[int],
        seq_lens: list[int],
        seq_ids: list[int],
    ) -> Batch:
        """Any numbers of tokens. The tensors are views of one: a device needs one copy (and the block tables)."""
        table_rows = np.array(rows, dtype=np.int64)
        query_start = np.array([0, *accumulate(query_lens)], dtype=np.int64)
        token_rows, positions = self._rows_and_positions(table_rows, np.array(starts), query_lens, query_start)
        blocks, offsets = np.divmod(positions, self.block_size)
        parts = [
            self.tokens[token_rows, positions],
            positions,
            self.blocks[token_rows, blocks] * self.block_size + offsets,
            query_start,
            np.array(seq_lens, dtype=np.int64),
            self._logits_rows(advance, states, query_start),
            table_rows,
        ]
        if self.state_slots is not None:
            parts.append(self.state_slots[table_rows])
        if self.device == "cpu":
            tables = torch.from_numpy(self.blocks)
        else:
            width = -(-max(seq_lens) // self.block_size)
            parts[6], rows = np.arange(len(rows)), list(range(len(rows)))
            tables = torch.from_numpy(self.blocks[table_rows, :width]).to(self.device)
        packed = torch.from_numpy(np.concatenate(parts)).to(self.device)
        token_ids, position, slots, query_starts, lens, logits_rows, table_row, *state_slots = packed.split(
            [len(p) for p in parts]
        )
        return Batch(
            token_ids=token_ids,
            positions=position,
            slots=slots,
            query_start=query_starts,
            seq_lens=lens,
            block_tables=tables,
            table_rows=table_row,
            logits_rows=logits_rows,
            query_lens_host=query_lens,
            seq_lens_host=seq_lens,
            table_rows_host=rows,
            seq_ids=seq_ids,
            state_slots=state_slots[0] if state_slots else None,
        )

    @staticmethod
    def _rows_and_positions(
        rows: IntArray, starts: IntArray, query_lens: list[int], query_start: IntArray
    ) -> tuple[IntArray, IntArray]:
        """`[T]` each: a token's row of the table, and its position in the sequence."""
        positions = np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], query_lens)
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


class SingleTokens:
    """The inputs of steps in which each of at most `capacity` sequences has one token, in memory that stays.

    Args:
        blocks: the table of block ids, which is read where it lies.
        state_slots: of each row of the table; None for models without recurrent state.
    """

    def __init__(self, blocks: IntArray, capacity: int, state_slots: IntArray | None = None) -> None:
        self.capacity = capacity
        self._blocks = blocks
        self._slot_of_row = state_slots
        self._state_slots = np.zeros(capacity, dtype=np.int64)
        self._inputs: IntArray = np.zeros((5, capacity), dtype=np.int64)
        self._rows = list(self._inputs)
        self._views = [memoryview(row) for row in self._inputs]
        self._query_start = torch.arange(capacity + 1)
        self._tensors = torch.from_numpy(self._inputs).unbind()
        self._tables = torch.from_numpy(blocks)
        self._batches: dict[int, Batch] = {}

    def fill(self, tokens: IntArray, block_size: int, rows: list[int], starts: list[int]) -> Batch:
        """Write the inputs of sequences in these rows of the table, whose tokens `starts` are computed.

        Returns:
            a batch over them, good until the next call; the fields that are lists are left to the caller.
        """
        count = len(rows)
        if count == 1:  # plain numbers are faster than arrays of one
            row, start = rows[0], starts[0]
            slot = self._blocks.item(row, start // block_size) * block_size + start % block_size
            for view, number in zip(self._views, (tokens.item(row, start), start, slot, start + 1, row), strict=True):
                view[0] = number
        else:
            token_ids, positions, slots, seq_lens, table_rows = self._rows
            table_rows[:count] = rows
            positions[:count] = starts
            row_of, start_of = table_rows[:count], positions[:count]
            np.add(start_of, 1, out=seq_lens[:count])
            token_ids[:count] = tokens[row_of, start_of]
            block, offset = np.divmod(start_of, block_size)
            slots[:count] = self._blocks[row_of, block] * block_size + offset
        if self._slot_of_row is not None:
            self._state_slots[:count] = self._slot_of_row[rows]
        return self.batch(count)

    def batch(self, count: int) -> Batch:
        """The views of the first `count` sequences' inputs, as they are now."""
        if count not in self._batches:
            token_ids, positions, slots, seq_lens, table_rows = (tensor[:count] for tensor in self._tensors)
            self._batches[count] = Batch(
                token_ids=token_ids,
                positions=positions,
                slots=slots,
                query_start=self._query_start[: count + 1],
                seq_lens=seq_lens,
                block_tables=self._tables,
                table_rows=table_rows,
                logits_rows=self._query_start[:count],
                query_lens_host=[1] * count,
                seq_lens_host=[1] * count,
                table_rows_host=[0] * count,
                seq_ids=[0] * count,
                state_slots=None if self._slot_of_row is None else torch.from_numpy(self._state_slots)[:count],
                replayable=True,
            )
        return self._batches[count]


def num_prompt_rows(item: Advance, state: SequenceState) -> int:
    """How many of a chunk's rows predict a prompt token whose log-probability was asked for."""
    if state.prompt_logprobs is None:
        return 0
    return max(0, min(item.start + item.num_tokens, state.prompt_len - 1) - item.start)
