"""Slots of recurrent state: where chunks end, what can be found again, and who loses a slot."""

from moesaic.core.config import CacheConfig, SchedulerConfig
from moesaic.core.step import Sampled, StepPlan, StepResult
from moesaic.scheduler.scheduler import Scheduler
from tests.unit.requests import make_request

BLOCK, INTERVAL = 4, 16


def scheduler(slots: int, caching: bool = True, budget: int = 100, seqs: int = 8) -> Scheduler:
    cache = CacheConfig(
        block_size=BLOCK,
        memory=None,
        memory_utilization=None,
        enable_prefix_caching=caching,
        state_checkpoint_interval=INTERVAL,
    )
    return Scheduler(SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=seqs), cache, 200, slots)


def run(scheduler: Scheduler, error: str | None = None) -> list[StepPlan]:
    """All plans until nothing is left; every step's answers are token 7, or an error."""
    plans = []
    while scheduler.has_unfinished:
        plans.append(plan := scheduler.schedule())
        answers = [Sampled(a.seq_id, 7, error=error) for a in plan.advance if a.samples or error]
        scheduler.update(plan, StepResult(answers, 0.0))
        scheduler.check_integrity()
    return plans


def chunks(plans: list[StepPlan]) -> list[tuple[int, int]]:
    return [(a.start, a.num_tokens) for plan in plans for a in plan.advance]


def test_chunks_end_at_checkpoints_and_at_the_last_block_boundary_of_the_prompt():
    s = scheduler(slots=8)
    s.add(make_request(list(range(39)), max_tokens=1))
    plans = run(s)
    assert chunks(plans) == [(0, 16), (16, 16), (32, 4), (36, 3)]
    assert [len(plan.saves) for plan in plans] == [1, 1, 1, 0]
    assert s.kv.states.num_checkpoints == 3


def test_decoding_saves_at_multiples_of_the_interval():
    s = scheduler(slots=8)
    s.add(make_request([1, 2, 3], max_tokens=35))
    plans = run(s)
    assert [plan.advance[0].start + 1 for plan in plans[1:] if plan.saves] == [16, 32]


def test_without_prefix_caching_no_chunk_is_cut_and_nothing_saved():
    s = scheduler(slots=8, caching=False)
    s.add(make_request(list(range(39)), max_tokens=1, n=2))
    plans = run(s)
    assert chunks(plans) == [(0, 39), (0, 39)] and len(plans) == 1  # nor does the sibling wait for nothing
    assert not any(plan.saves or plan.restores for plan in plans)


def test_the_same_prompt_starts_at_its_end_and_a_longer_one_at_the_last_checkpoint():
    s = scheduler(slots=8)
    s.add(make_request(list(range(39)), max_tokens=1))
    run(s)
    s.add(make_request(list(range(39)), max_tokens=1))
    (plan,) = run(s)
    assert chunks([plan]) == [(36, 3)]
    ((source, target),) = plan.restores
    assert target == plan.new[0].state_slot != source
    s.add(make_request(list(range(35)) + [99] * 20, max_tokens=1))
    assert chunks(run(s))[0] == (32, 16)  # 36 is beyond what they share, the next below is 32


def test_a_prompt_of_whole_blocks_starts_before_its_last_one():
    s = scheduler(slots=8)
    for _ in range(2):
        s.add(make_request(list(range(24)), max_tokens=1))
        last = chunks(run(s))
    assert last == [(20, 4)]  # its last token must be computed


def test_blocks_without_a_state_are_no_hit():
    s = scheduler(slots=1)  # each checkpoint loses its slot to the next sequence
    s.add(make_request(list(range(39)), max_tokens=1))
    run(s)
    s.add(make_request(list(range(39)), max_tokens=1))
    assert chunks(run(s))[0] == (0, 16)


def test_siblings_start_from_the_end_of_the_prompt():
    s = scheduler(slots=8)
    s.add(make_request(list(range(39)), max_tokens=1, n=3))
    assert chunks(run(s))[-2:] == [(36, 3), (36, 3)]


def test_a_preempted_sequence_goes_on_from_its_last_checkpoint():
    s = scheduler(slots=4)
    s.add(make_request(list(range(10)), max_tokens=30))
    for _ in range(20):
        plan = s.schedule()
        s.update(plan, StepResult([Sampled(a.seq_id, 7) for a in plan.advance if a.samples], 0.0))
    s.preempt(s.running[0])
    s.check_integrity()
    (new,) = s.schedule().advance
    assert new.start == 16 and new.num_tokens > 1


def test_no_more_sequences_run_than_there_are_slots():
    s = scheduler(slots=2)
    for i in range(5):
        s.add(make_request([i] * 9, max_tokens=3))
    plans = run(s)
    assert max(len(plan.advance) for plan in plans) == 2


def test_the_least_recently_used_checkpoint_goes_first():
    s = scheduler(slots=3)
    for token in (1, 2):
        s.add(make_request([token] * 6, max_tokens=1))
        run(s)
    s.add(make_request([1] * 6, max_tokens=1))  # used again
    assert chunks(run(s)) == [(4, 2)]
    s.add(make_request([3] * 6, max_tokens=1))  # its checkpoint takes the slot of [2] * 4
    run(s)
    s.add(make_request([1] * 6, max_tokens=1))
    assert chunks(run(s)) == [(4, 2)]
    s.add(make_request([2] * 6, max_tokens=1))
    assert chunks(run(s)) == [(0, 4), (4, 2)]


def test_the_last_checkpoint_becomes_the_sequences_own_where_there_is_no_other_slot():
    s = scheduler(slots=2)
    s.add(make_request([1] * 6, max_tokens=1))
    run(s)  # leaves a checkpoint in one slot
    s.add(make_request([2] * 3, max_tokens=99))  # takes the other
    s.update(plan := s.schedule(), StepResult([Sampled(a.seq_id, 7) for a in plan.advance], 0.0))
    s.add(make_request([1] * 6, max_tokens=1))
    plan = s.schedule()
    assert chunks([plan]) == [(3, 1), (4, 2)] and plan.restores == []
    assert {plan.new[0].state_slot, s.running[0].state_slot} == {0, 1}
    s.update(plan, StepResult([], 0.0))
    s.check_integrity()


def test_a_step_that_failed_leaves_nothing_to_find():
    s = scheduler(slots=4)
    s.add(make_request(list(range(39)), max_tokens=1))
    run(s, error="broken")
    assert s.kv.states.num_checkpoints == 0 and len(s.kv.cache) == 0
    s.add(make_request(list(range(39)), max_tokens=1))
    assert chunks(run(s))[0] == (0, 16)


def test_equal_prompts_in_one_step_are_saved_once():
    s = scheduler(slots=8)
    for _ in range(2):
        s.add(make_request([*range(16), 5], max_tokens=1))
    assert [len(plan.saves) for plan in run(s)] == [1, 0]
