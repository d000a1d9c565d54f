"""Which sequences run in a step, and how many tokens of each.

There is no prefill phase and no decode phase: every sequence has `num_computed` tokens that catch up with its
length under one token budget. Chunked prefill, prefix-cache hits and preemption are all that one rule.
"""

from bisect import insort
from operator import attrgetter
from time import time

from moesaic.core.config import CacheConfig, SchedulerConfig
from moesaic.core.errors import RequestError
from moesaic.core.messages import EngineStats
from moesaic.core.outputs import FinishReason
from moesaic.core.request import EngineRequest, Sequence, SequenceStatus, SequenceUpdate
from moesaic.core.step import Advance, NewSequence, Sampled, StepPlan, StepResult
from moesaic.scheduler.kv_manager import KVManager
from moesaic.scheduler.state_pool import StatePool

ORDER = attrgetter("order")


class Scheduler:
    """Owns every live sequence. `schedule` plans a step, `update` books what it did.

    Both queues are kept in `Sequence.order`: priority, then arrival. When blocks run out, the running sequence
    that is last in that order is preempted: its blocks are freed and it is computed again later.

    Args:
        num_state_slots: 0 for models without recurrent state; else no more sequences run at once.
    """

    def __init__(self, config: SchedulerConfig, cache: CacheConfig, num_blocks: int, num_state_slots: int = 0) -> None:
        self.config = config
        states = None
        if num_state_slots:
            states = StatePool(
                num_state_slots, cache.state_checkpoint_interval, cache.block_size, cache.enable_prefix_caching
            )
        self.kv = KVManager(
            num_blocks,
            cache.block_size,
            cache.enable_prefix_caching,
            states,
            whole_prompts=config.whole_prompts,
            share_prompts=config.share_prompts,
        )
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.stats = EngineStats(kv_blocks_total=num_blocks, state_slots_total=num_state_slots)
        self._live: dict[str, list[Sequence]] = {}
        self._by_id: dict[int, Sequence] = {}
        self._next_seq_id = 0
        self._gone: list[int] = []  # sequences that the worker must forget with the next plan

    # ---------------------------------------------------------------- requests come and go

    def add(self, request: EngineRequest) -> None:
        """Queue the n sequences of a request.

        Raises:
            RequestError: its id is in use, all blocks together could not hold one of its sequences, or its prompt is
                longer than a step where prompts are computed whole.
        """
        if request.request_id in self._live:
            raise RequestError(f"request id {request.request_id!r} is already in use", "request_id")
        prompt_len, budget = len(request.prompt_token_ids), self.config.max_num_batched_tokens
        if self.config.whole_prompts and prompt_len > budget:
            raise RequestError(
                f"prompt has {prompt_len} tokens, and this model computes prompts whole, in steps of at most {budget}: "
                "start with a larger --max-num-batched-tokens"
            )
        tokens = prompt_len + request.max_tokens
        if self.kv.blocks_for(tokens) > self.kv.pool.num_blocks:
            capacity = self.kv.pool.num_blocks * self.kv.block_size
            raise RequestError(
                f"prompt ({prompt_len} tokens) and max_tokens ({request.max_tokens}) need "
                f"{tokens} tokens of KV cache, which holds {capacity} in all"
            )
        sequences: list[Sequence] = []
        for index in range(request.params.n):
            parent = sequences[0] if sequences else None
            seq = Sequence(self._next_seq_id, request, index, list(request.prompt_token_ids), parent=parent)
            self._next_seq_id += 1
            self._by_id[seq.seq_id] = seq
            insort(self.waiting, seq, key=ORDER)
            sequences.append(seq)
        self._live[request.request_id] = sequences

    def abort(self, request_id: str, index: int = -1) -> None:
        """Forget one sequence of a request, or all; unknown ones are ignored (they may just have finished)."""
        for seq in list(self._live.get(request_id, ())):
            if index in (-1, seq.index):
                self._finish(seq)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._live)

    def sequences(self) -> list[Sequence]:
        """All live sequences."""
        return list(self._by_id.values())

    def sequence(self, seq_id: int) -> Sequence:
        """A live sequence by its id."""
        return self._by_id[seq_id]

    # ---------------------------------------------------------------- one step

    def schedule(self) -> StepPlan:
        """Plan a step: first what runs, each at most up to its length, then whom the rest of the budget admits."""
        plan = StepPlan(gone=[], new=[], advance=[])
        self._make_way()
        preemptions = self.stats.preemptions_total
        budget = self._advance_running(plan, self.config.max_num_batched_tokens)
        if self.stats.preemptions_total == preemptions:
            self._admit_waiting(plan, budget)
        plan.gone, self._gone = self._gone, []
        if self.kv.states is not None:
            for item in plan.advance:  # last, so that checkpoints take what slots sequences leave
                self.kv.save_state(self._by_id[item.seq_id], item.start + item.num_tokens)
            plan.restores, plan.saves = self.kv.states.take_copies()
        return plan

    def _advance_running(self, plan: StepPlan, budget: int) -> int:
        """Give each running sequence its tokens, in order; returns the budget that is left.

        A long chunk leaves one token of the budget to each sequence after it, so that nobody's decoding
        stalls behind another's prompt.
        """
        running = list(self.running)
        for i, seq in enumerate(running):
            if seq.status is not SequenceStatus.RUNNING or budget == 0:
                break  # it was preempted for one before it, and so was every one after it
            fair = max(1, budget - (len(running) - i - 1))
            last = seq.num_computed + 1 == len(seq.token_ids)
            num_tokens = 1 if last else self.kv.chunk(seq, seq.num_computed, fair)
            new_blocks = self._grow(seq, num_tokens)
            if new_blocks is None:
                break
            plan.advance.append(_advance(seq, num_tokens, new_blocks))
            budget -= num_tokens
        return budget

    def _grow(self, seq: Sequence, num_tokens: int) -> list[int] | None:
        """Blocks for `num_tokens` more tokens, preempting from the end of the order; None if `seq` itself went."""
        while (blocks := self.kv.grow(seq, num_tokens)) is None:
            victim = self.running[-1]
            self.preempt(victim)
            if victim is seq:
                return None
        return blocks

    def _admit_waiting(self, plan: StepPlan, budget: int) -> None:
        """Start waiting sequences, in order, while there are tokens, places and blocks."""
        for seq in list(self.waiting):
            if budget == 0 or len(self.running) >= self.config.max_num_seqs:
                break
            if self._waits_for_parent(seq):
                continue
            prefix = self.kv.find_prefix(seq)
            num_tokens = self.kv.chunk(seq, len(prefix) * self.kv.block_size, budget)
            if not self.kv.room_for(seq, prefix, num_tokens) or (num_tokens > budget and plan.new):
                break  # one alone may take more than is left: it is computed whole, perhaps again, with its output
            self._start(seq, prefix)
            blocks = self.kv.grow(seq, num_tokens)
            assert blocks is not None, "room_for promised them"
            plan.new.append(_introduce(seq))
            plan.advance.append(_advance(seq, num_tokens, prefix + blocks))
            budget = max(0, budget - num_tokens)

    def _start(self, seq: Sequence, prefix: list[int]) -> None:
        self.waiting.remove(seq)
        insort(self.running, seq, key=ORDER)
        seq.status = SequenceStatus.RUNNING
        self.kv.admit(seq, prefix)
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed
            seq.queue_seconds = max(0.0, time() - seq.request.arrival_time)
            if self.kv.cache.enabled and seq.parent is None:
                self.stats.prefix_queries_total += seq.prompt_len
                self.stats.prefix_hits_total += seq.num_cached

    def _make_way(self) -> None:
        """Preempt running sequences of lower priority while a waiting one of higher priority cannot start."""
        while self.waiting and self.running:
            head = next((seq for seq in self.waiting if not self._waits_for_parent(seq)), None)
            last = self.running[-1]
            if head is None or head.request.priority >= last.request.priority:
                return
            prefix = self.kv.find_prefix(head)
            first_chunk = self.kv.chunk(head, len(prefix) * self.kv.block_size, self.config.max_num_batched_tokens)
            if len(self.running) < self.config.max_num_seqs and self.kv.room_for(head, prefix, first_chunk):
                return
            self.preempt(last)

    def _waits_for_parent(self, seq: Sequence) -> bool:
        """Whether it pays to wait: the parent is computing the prompt that both share."""
        parent = seq.parent
        if parent is None or parent.status is not SequenceStatus.RUNNING or not self.kv.shares_prompts:
            return False
        return parent.num_computed < parent.prompt_len

    def preempt(self, seq: Sequence) -> None:
        """Take the blocks of a running sequence back; it waits, in its old place, to be computed again."""
        self.running.remove(seq)
        self.kv.free(seq)
        seq.status = SequenceStatus.WAITING
        seq.num_preemptions += 1
        self.stats.preemptions_total += 1
        insort(self.waiting, seq, key=ORDER)
        self._gone.append(seq.seq_id)

    # ---------------------------------------------------------------- what the step did

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Append sampled tokens, finish what ended, free its blocks; returns what clients should hear."""
        starts = {}
        failed = [answer.seq_id for answer in result.sampled if answer.error is not None]
        for item in plan.advance:
            seq = self._by_id[item.seq_id]
            seq.num_computed += item.num_tokens
            seq.num_ever = max(seq.num_ever, seq.num_computed)
            starts[item.seq_id] = item.start
            self.stats.computed_tokens_total += item.num_tokens
            if item.seq_id in failed:
                self.kv.discard(seq)
            else:
                self.kv.commit(seq)
        return [self._book(self._by_id[s.seq_id], s, starts[s.seq_id]) for s in result.sampled]

    def _book(self, seq: Sequence, sampled: Sampled, start: int) -> SequenceUpdate:
        update = SequenceUpdate(seq.request.request_id, seq.index, [], num_cached=seq.num_cached or 0)
        if sampled.prompt_logprobs is not None:
            update.prompt_logprobs = sampled.prompt_logprobs[max(0, seq.prompt_rows_done - start) :]
            seq.prompt_rows_done = max(seq.prompt_rows_done, start + len(sampled.prompt_logprobs))
        if sampled.routes is not None:
            update.routes = sampled.routes.between(seq.routes_done, sampled.routes.end)
            seq.routes_done = max(seq.routes_done, sampled.routes.end)
        if sampled.error is not None:
            update.finish_reason, update.error = "error", sampled.error
        elif sampled.token_id is not None:
            seq.token_ids.append(sampled.token_id)
            update.new_token_ids = [sampled.token_id]
            if seq.num_generated == 1:
                update.queue_seconds = seq.queue_seconds
            if sampled.logprobs is not None:
                update.logprobs = [sampled.logprobs]
            update.finish_reason, update.stop_reason = self._end_of(seq, sampled.token_id)
        if update.finish_reason is not None:
            self._finish(seq)
        return update

    def _end_of(self, seq: Sequence, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Why the sequence ends with this token, if it does; EOS reports no stop_reason."""
        request, num_generated = seq.request, seq.num_generated
        if token_id in request.stop_token_ids and num_generated > request.params.min_tokens:
            return "stop", None if token_id in request.eos_token_ids else token_id
        if num_generated >= request.max_tokens:
            return "length", None
        return None, None

    def _finish(self, seq: Sequence) -> None:
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
            self._gone.append(seq.seq_id)
        else:
            self.waiting.remove(seq)
        self.kv.free(seq)
        seq.status = SequenceStatus.FINISHED
        del self._by_id[seq.seq_id]
        siblings = self._live[seq.request.request_id]
        siblings.remove(seq)
        if not siblings:
            del self._live[seq.request.request_id]

    # ---------------------------------------------------------------- looking in

    def snapshot(self) -> EngineStats:
        """The counters, with the gauges as they are now."""
        self.stats.num_running, self.stats.num_waiting = len(self.running), len(self.waiting)
        self.stats.kv_blocks_used = self.kv.pool.num_used
        if self.kv.states is not None:
            self.stats.state_slots_used = self.kv.states.num_held
            self.stats.state_checkpoints = self.kv.states.num_checkpoints
        return self.stats

    def fragmentation(self) -> float | None:
        """Share of the places in used blocks that hold no token; None where no block is used. Blocks that several
        sequences hold are full, so what is empty is the end of each sequence's own last block."""
        places = self.kv.pool.num_used * self.kv.block_size
        empty = sum(len(seq.block_ids) * self.kv.block_size - seq.num_computed for seq in self.running)
        return empty / places if places else None

    def check_integrity(self) -> None:
        """Prove that reference counts add up to used blocks, that each state slot is in one place, and that no sequence
        is in two.

        Raises:
            MoesaicError: with the first inconsistencies found.
        """
        self.kv.check_integrity(self.sequences())
        queued = sorted(seq.seq_id for seq in self.running + self.waiting)
        assert queued == sorted(self._by_id), "the queues and the live sequences differ"
        for queue, status in ((self.running, SequenceStatus.RUNNING), (self.waiting, SequenceStatus.WAITING)):
            assert all(seq.status is status for seq in queue)
            assert [seq.order for seq in queue] == sorted(seq.order for seq in queue)
        assert not any(seq.block_ids for seq in self.waiting), "a waiting sequence holds blocks"
        assert not any(seq.state_slot >= 0 for seq in self.waiting), "a waiting sequence holds a state"
        assert self.kv.states is None or all(seq.state_slot >= 0 for seq in self.running)
        for seq in self.running:
            assert len(seq.block_ids) == self.kv.blocks_for(seq.num_computed), "a running sequence holds spare blocks"


def _advance(seq: Sequence, num_tokens: int, new_blocks: list[int]) -> Advance:
    start, end = seq.num_computed, seq.num_computed + num_tokens
    again = max(0, min(seq.num_ever, end) - start)
    return Advance(seq.seq_id, start, num_tokens, new_blocks, end == len(seq.token_ids), again)


def _introduce(seq: Sequence) -> NewSequence:
    request = seq.request
    return NewSequence(
        seq_id=seq.seq_id,
        token_ids=seq.token_ids,
        prompt_len=seq.prompt_len,
        params=request.params,
        stop_token_ids=request.stop_token_ids,
        seed=(request.seed + seq.index) % 2**64,
        prompt_logprobs=request.params.prompt_logprobs if seq.index == 0 else None,
        state_slot=seq.state_slot,
        routing=request.routing,
        request_id=request.request_id,
    )
