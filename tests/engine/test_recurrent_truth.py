"""One truth with recurrent layers: the same tokens and log-probabilities, to the last bit, alone, batched, chunked at
any budget, from checkpoints, preempted, recorded or not."""

import random

import pytest

from moesaic import LLM, SamplingParams
from tests.engine.test_recorded_steps import runner_of
from tests.families import recurrent

INTERVAL = 32
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
CLOSELY = ["lfm2_moe", "qwen3_next"]  # convolutions alone, and with a matrix beside
OTHERS = [family for family in recurrent.CONFIGS if family not in (*CLOSELY, "lfm2")]


def prompts() -> list[list[int]]:
    """Prompts of 1 to 120 tokens; half of them begin with one of two prefixes longer than an interval."""
    rng = random.Random(0)
    prefixes = [[rng.randrange(128) for _ in range(size)] for size in (37, 64)]
    tails = [[rng.randrange(128) for _ in range(rng.randrange(1, 56))] for _ in range(14)]
    return [(prefixes[i // 2 % 2] if i % 2 else []) + tail for i, tail in enumerate(tails)]


def engine(path: str, **kwargs) -> LLM:
    options = {"moe_backend": "cpu", "state_checkpoint_interval": INTERVAL, **kwargs}
    return LLM(path, skip_tokenizer_init=True, threads=1, **options)


def generate(llm: LLM, token_ids: list[list[int]], params: SamplingParams = PARAMS) -> list:
    outputs = llm.generate([{"prompt_token_ids": p} for p in token_ids], params, use_tqdm=False)
    llm.llm_engine.engine.check_integrity()
    assert llm.llm_engine.engine.stats.state_slots_used == 0
    return outputs


def truth_of(outputs) -> list:
    """Tokens and every reported log-probability of each completion, to the last bit."""
    return [
        [(c.token_ids, [{t: e.logprob for t, e in row.items()} for row in c.logprobs]) for c in output.outputs]
        for output in outputs
    ]


@pytest.fixture(scope="module")
def path(request, tiny_model) -> str:
    return tiny_model(request.param)


closely = pytest.mark.parametrize("path", CLOSELY, indirect=True)


@pytest.fixture(scope="module")
def alone(path) -> list:
    """Each prompt by itself, in one piece, with no checkpoint anywhere."""
    llm = engine(path, enable_prefix_caching=False)
    return [truth_of(generate(llm, [prompt]))[0] for prompt in prompts()]


FEW_WAYS = [{}, {"max_num_batched_tokens": 7}]
WAYS = [
    *FEW_WAYS,
    {"enable_prefix_caching": False},
    {"enforce_eager": True},
    {"max_num_batched_tokens": 1, "max_num_seqs": 3},
    {"max_num_batched_tokens": 33},
    {"max_num_batched_tokens": 33, "enable_prefix_caching": False},
    {"max_num_batched_tokens": 50, "block_size": 1},
    {"state_checkpoint_interval": 16, "max_num_seqs": 5},
]


CASES = [
    (family, way) for ways, families in ((WAYS, CLOSELY), (FEW_WAYS, OTHERS)) for family in families for way in ways
]


@pytest.mark.parametrize(("path", "kwargs"), CASES, indirect=["path"], ids=str)
def test_however_it_is_batched(path, alone, kwargs):
    llm = engine(path, **kwargs)
    assert truth_of(generate(llm, prompts())) == alone
    caching = kwargs.get("enable_prefix_caching", True)
    assert (llm.llm_engine.engine.stats.state_checkpoints > 0) == caching


@pytest.mark.parametrize("path", CLOSELY + OTHERS, indirect=True)
def test_a_second_round_starts_at_each_prompts_end(path, alone):
    llm = engine(path)
    generate(llm, prompts())
    outputs = generate(llm, prompts())
    assert [o.num_cached_tokens for o in outputs] == [(len(p) - 1) // 16 * 16 for p in prompts()]
    assert truth_of(outputs) == alone


@closely
@pytest.mark.parametrize("budget", [2048, 7])
def test_a_continuation_starts_at_the_last_checkpoint(path, budget):
    """A conversation goes on: what was generated, and more, behind a prompt that was computed before."""
    rng = random.Random(1)
    llm, plain = engine(path, max_num_batched_tokens=budget), engine(path, enable_prefix_caching=False)
    first = generate(llm, prompts())
    more = [
        prompt + list(output.outputs[0].token_ids) + [rng.randrange(128) for _ in range(1 + i % 20)]
        for i, (prompt, output) in enumerate(zip(prompts(), first, strict=True))
    ]
    outputs = generate(llm, more)
    expected = [truth_of(generate(plain, [prompt]))[0] for prompt in more]
    assert truth_of(outputs) == expected
    for prompt, output in zip(prompts(), outputs, strict=True):
        assert output.num_cached_tokens >= (len(prompt) - 1) // 16 * 16


@closely
def test_siblings(path):
    """The second and third completion start from the end of the prompt."""
    params = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=8, ignore_eos=True, logprobs=1)
    llm = engine(path)
    outputs = generate(llm, prompts(), params)
    computed = llm.llm_engine.engine.stats.computed_tokens_total
    assert computed < sum(len(p) + 3 * (16 + 8) for p in prompts())  # the prompt once, its last block thrice at most
    plain = engine(path, enable_prefix_caching=False)
    assert truth_of(outputs) == truth_of(generate(plain, prompts(), params))


PREEMPTED = [(family, 6, True) for family in CLOSELY + OTHERS]
PREEMPTED += [(family, slots, caching) for family in CLOSELY for slots, caching in ((6, False), (None, True))]


@pytest.mark.parametrize(("path", "slots", "prefix_caching"), PREEMPTED, indirect=["path"])
def test_under_forced_preemptions(path, alone, prefix_caching, slots):
    """A third of the running sequences lose blocks and state every few steps; with few slots, checkpoints go too."""
    limits = {}
    if slots is not None:
        kv = engine(path, max_num_seqs=2).llm_engine.engine.executor.kv
        limits = {"kv_cache_memory": 9 * kv.bytes_per_block + slots * kv.bytes_per_slot, "max_model_len": 144}
    llm = engine(path, enable_prefix_caching=prefix_caching, max_num_batched_tokens=50, **limits)
    inner = llm.llm_engine
    assert slots is None or inner.engine.executor.kv.num_slots <= slots
    for i, prompt in enumerate(prompts()):
        inner.add_request(str(i), {"prompt_token_ids": prompt}, PARAMS)
    rng, done, steps = random.Random(1), {}, 0
    while inner.has_unfinished_requests():
        done |= {int(out.request_id): out for out in inner.step() if out.finished}
        steps += 1
        scheduler = inner.engine.scheduler
        if steps % 5 == 0 and scheduler.running:
            for seq in rng.sample(scheduler.running, max(1, len(scheduler.running) // 3)):
                scheduler.preempt(seq)
            inner.engine.check_integrity()
    assert inner.engine.stats.preemptions_total >= 10
    assert truth_of([done[i] for i in range(len(done))]) == alone
    assert inner.engine.stats.kv_blocks_used == inner.engine.stats.state_slots_used == 0


@pytest.mark.parametrize("path", CLOSELY + OTHERS, indirect=True)
def test_recorded_steps_are_used(path, monkeypatch):
    """Decode steps are replayed, over whatever slots the sequences have."""
    llm = engine(path)
    step = runner_of(llm).recorded
    assert step.program is not None
    replayed = []
    plain = type(step).logits

    def noted(self, batch):
        logits = plain(self, batch)
        replayed.append(logits is not None)
        return logits

    monkeypatch.setattr(type(step), "logits", noted)
    generate(llm, prompts())
    assert sum(replayed) >= PARAMS.max_tokens - 2


@closely
def test_a_failed_step_leaves_no_state_to_find(path, alone):
    llm = engine(path)
    runner = runner_of(llm)
    forward, runner._logits = runner._logits, None  # calling None fails the step
    long = [p for p in prompts() if len(p) > INTERVAL]
    outputs = llm.generate([{"prompt_token_ids": p} for p in long], PARAMS, use_tqdm=False)
    assert all(c.finish_reason == "error" for output in outputs for c in output.outputs)
    runner._logits = forward
    assert llm.llm_engine.engine.stats.state_checkpoints == 0
    assert truth_of(generate(llm, prompts())) == alone
