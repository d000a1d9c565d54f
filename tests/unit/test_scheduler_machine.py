"""A hypothesis state machine drives scheduler and block pool, with a worker that checks every plan.

The worker keeps, for each slot of the cache, the whole prefix that a correct engine would have written there, so
that a wrong block table, a block overwritten while shared, or a false prefix hit shows as a wrong prefix. Slots of
recurrent state, where the machine has them, hold the prefix that they have seen.
MOESAIC_LONG=1 runs 1,000 machines of 200 steps; otherwise a sample.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moesaic.core.config import CacheConfig, SchedulerConfig
from moesaic.core.step import Advance, Sampled, StepPlan, StepResult
from moesaic.scheduler.scheduler import Scheduler
from tests.unit.requests import make_request

# prompts begin alike, so that prefixes are shared, evicted and found again
BASES = ([0] * 24, [0] * 4 + [1] * 20, [1, 0] * 12)
PROMPTS = st.builds(
    lambda base, length, tail: base[:length] + tail,
    st.sampled_from(BASES),
    st.integers(0, 18),
    st.lists(st.integers(0, 1), min_size=1, max_size=3),
)
LONG = os.environ.get("MOESAIC_LONG") == "1"


class CheckingWorker:
    """Executes plans on an imaginary cache and asserts all that a real worker relies on."""

    def __init__(self, scheduler: Scheduler, num_blocks: int, block_size: int, num_state_slots: int) -> None:
        self.scheduler = scheduler
        self.block_size = block_size
        self.slots: list[tuple[str, list[int]] | None] = [None] * (num_blocks * block_size)
        self.tokens: dict[int, list[int]] = {}
        self.blocks: dict[int, list[int]] = {}
        self.states: list[tuple[str, list[int]] | None] = [None] * num_state_slots
        self.state_of: dict[int, int] = {}
        self.ever: dict[int, set[int]] = {}
        self.hits = 0

    def execute(self, plan: StepPlan) -> StepResult:
        for seq_id in plan.gone:
            self.tokens.pop(seq_id, None)
            self.blocks.pop(seq_id, None)
            self.state_of.pop(seq_id, None)
        for new in plan.new:
            assert new.seq_id not in self.tokens, "a sequence was introduced twice"
            self.tokens[new.seq_id], self.blocks[new.seq_id] = list(new.token_ids), []
            if self.states:
                assert new.state_slot not in self.state_of.values(), "a slot has two sequences"
                self.state_of[new.seq_id] = new.state_slot
        assert len({item.seq_id for item in plan.advance}) == len(plan.advance)
        self._copy(plan.restores)
        self.hits += sum(item.start > 0 for item in plan.advance if item.seq_id in {new.seq_id for new in plan.new})
        sampled = [Sampled(i.seq_id, self._advance(i)) for i in plan.advance if self._samples(i)]
        self._copy(plan.saves)
        return StepResult(sampled, 0.0)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        for source, target in copies:
            assert source != target
            self.states[target] = self.states[source]

    def _samples(self, item: Advance) -> bool:
        if not item.samples:
            self._advance(item)
        return item.samples

    def _advance(self, item: Advance) -> int:
        tokens, blocks = self.tokens[item.seq_id], self.blocks[item.seq_id]
        blocks += item.new_block_ids
        assert item.num_tokens > 0
        assert item.samples == (item.start + item.num_tokens == len(tokens))
        seen = self.ever.setdefault(item.seq_id, set())
        seen.update(range(item.start))  # what it began on was computed by others, or by itself
        now = range(item.start, item.start + item.num_tokens)
        assert [position in seen for position in now] == [i < item.again for i in range(item.num_tokens)]
        seen.update(now)
        salt = self.scheduler.sequence(item.seq_id).request.cache_salt
        for position in range(item.start):
            assert self.slots[self._slot(blocks, position)] == (salt, tokens[: position + 1]), "wrong KV below start"
        for position in range(item.start, item.start + item.num_tokens):
            block = blocks[position // self.block_size]
            assert self.scheduler.kv.pool.ref_counts[block] == 1, "a shared block is written"
            self.slots[self._slot(blocks, position)] = (salt, tokens[: position + 1])
        if self.states:
            slot = self.state_of[item.seq_id]
            before = (salt, tokens[: item.start])
            assert item.start == 0 or self.states[slot] == before, "the state of another prefix, or none"
            self.states[slot] = (salt, tokens[: item.start + item.num_tokens])
        token = sum(tokens) % 5  # a function of the sequence alone, as a greedy model's would be
        if item.samples:
            tokens.append(token)
        return token

    def _slot(self, blocks: list[int], position: int) -> int:
        return blocks[position // self.block_size] * self.block_size + position % self.block_size


class SchedulerMachine(RuleBasedStateMachine):
    """Rules: add, step, abort, preempt; finishing happens by itself."""

    recurrent = False

    @initialize(
        num_blocks=st.integers(6, 24),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.integers(1, 20),
        max_num_seqs=st.integers(1, 6),
        prefix_caching=st.booleans(),
        state=st.tuples(st.integers(1, 12), st.integers(1, 3)),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        budget: int,
        max_num_seqs: int,
        prefix_caching: bool,
        state: tuple[int, int],
    ) -> None:
        num_state_slots, blocks_between = state if self.recurrent else (0, 1)
        cache = CacheConfig(
            block_size=block_size,
            memory=None,
            memory_utilization=0.5,
            enable_prefix_caching=prefix_caching,
            state_checkpoint_interval=blocks_between * block_size,
        )
        config = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=max_num_seqs)
        self.scheduler = Scheduler(config, cache, num_blocks, num_state_slots)
        self.worker = CheckingWorker(self.scheduler, num_blocks, block_size, num_state_slots)
        self.capacity = num_blocks * block_size
        self.budget = budget
        self.expected: dict[tuple[str, int], list[int]] = {}  # what each sequence must generate
        self.received: dict[tuple[str, int], list[int]] = {}

    @rule(
        prompt=PROMPTS,
        max_tokens=st.sampled_from([1, 2, 8]),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "b"]),
    )
    def add(self, prompt: list[int], max_tokens: int, n: int, priority: int, salt: str) -> None:
        room = self.capacity - max_tokens
        if room < 1:
            return
        prompt = prompt[:room]
        request = make_request(prompt, max_tokens=max_tokens, n=n, priority=priority, cache_salt=salt)
        self.scheduler.add(request)
        output = list(prompt)
        for _ in range(max_tokens):
            output.append(sum(output) % 5)
        for index in range(n):
            self.expected[request.request_id, index] = output[len(prompt) :]

    @precondition(lambda self: self.scheduler.has_unfinished)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.scheduler.has_unfinished:
                self._step()

    def _step(self) -> None:
        plan = self.scheduler.schedule()
        assert plan.num_tokens <= self.budget
        assert plan.advance, "an engine with work to do made no plan"
        for update in self.scheduler.update(plan, self.worker.execute(plan)):
            key = (update.request_id, update.index)
            self.received.setdefault(key, []).extend(update.new_token_ids)
            if update.finish_reason is not None:
                assert self.received.pop(key) == self.expected.pop(key)

    @precondition(lambda self: self.scheduler.has_unfinished)
    @rule(data=st.data(), whole=st.booleans())
    def abort(self, data: Any, whole: bool) -> None:
        seq = data.draw(st.sampled_from(self.scheduler.sequences()))
        request_id, index = seq.request.request_id, -1 if whole else seq.index
        self.scheduler.abort(request_id, index)
        for key in [key for key in self.expected if key[0] == request_id and index in (-1, key[1])]:
            del self.expected[key]
            self.received.pop(key, None)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data: Any) -> None:
        self.scheduler.preempt(data.draw(st.sampled_from(self.scheduler.running)))

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if not self.scheduler.has_unfinished:
                break
            self._step()
        assert not self.scheduler.has_unfinished and not self.expected, "some sequence never ended"
        self.scheduler.check_integrity()
        assert self.scheduler.kv.pool.num_used == 0
        assert self.scheduler.kv.states is None or self.scheduler.kv.states.num_held == 0


class RecurrentMachine(SchedulerMachine):
    """The same with slots of recurrent state, fewer or more than sequences."""

    recurrent = True


TestScheduler = SchedulerMachine.TestCase
TestRecurrent = RecurrentMachine.TestCase
TestScheduler.settings = TestRecurrent.settings = settings(
    max_examples=1000 if LONG else 60,
    stateful_step_count=200 if LONG else 50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
