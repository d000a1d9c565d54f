"""One truth: the same greedy tokens alone, batched, chunked at any budget, preempted, with and without prefix cache.

The cpu backend gives the same bits for every batch, so nothing may differ: on each instruction set, in each format of
weights, recorded or not. torch's own fp32 products promise no such thing: on the reference backend a flip is accepted
where the top two log-probabilities lie within 1e-5; flips are counted and few.
"""

import random

import pytest

from moesaic import LLM, SamplingParams

TOKENS = 16
NEAR_TIE = 1e-5
ACCEPTED = {"cpu": 0, "reference": 2}
PARAMS = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=2)


def prompts() -> list[dict]:
    """64 prompts of 1 to 90 tokens; half of them begin with one of two common prefixes."""
    rng = random.Random(0)
    prefixes = [[rng.randrange(128) for _ in range(40)] for _ in range(2)]
    made = []
    for i in range(64):
        tail = [rng.randrange(128) for _ in range(rng.randrange(1, 50))]
        made.append({"prompt_token_ids": (prefixes[i // 2 % 2] if i % 2 else []) + tail})
    return made


def engine(path: str, **kwargs) -> LLM:
    return LLM(path, skip_tokenizer_init=True, threads=1, **kwargs)


def tokens_of(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def assert_same(reference, outputs) -> int:
    """Compare token by token; returns how many prompts flipped at a near-tie, and fails on any other difference."""
    flips = 0
    for one, other in zip(reference, outputs, strict=True):
        a, b = one.outputs[0], other.outputs[0]
        for position, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)):
            if x != y:
                best = sorted((entry.logprob for entry in a.logprobs[position].values()), reverse=True)
                assert best[0] - best[1] < NEAR_TIE, f"{one.request_id}: token {position} differs and was no near-tie"
                flips += 1
                break  # what follows has another history
    return flips


@pytest.fixture(scope="module")
def path(tiny_model) -> str:
    return tiny_model("qwen3_moe", sliding_window=24, use_sliding_window=True)


@pytest.fixture(scope="module")
def alone(path):
    """A function: backend in, each prompt by itself without prefix cache out: the reference of all others."""
    made = {}

    def outputs(backend: str):
        if backend not in made:
            llm = engine(path, enable_prefix_caching=False, moe_backend=backend)
            made[backend] = [llm.generate(prompt, PARAMS, use_tqdm=False)[0] for prompt in prompts()]
        return made[backend]

    return outputs


WAYS = [
    ("cpu", {"enable_prefix_caching": False}),
    ("cpu", {"enable_prefix_caching": True}),
    ("cpu", {"max_num_batched_tokens": 1, "max_num_seqs": 3}),
    ("cpu", {"max_num_batched_tokens": 7}),
    ("cpu", {"max_num_batched_tokens": 33, "enable_prefix_caching": False}),
    ("cpu", {"block_size": 1, "max_num_batched_tokens": 50}),
    ("cpu", {"max_num_seqs": 5}),
    ("cpu", {"enforce_eager": True}),
    ("reference", {"enable_prefix_caching": False}),
    ("reference", {"max_num_batched_tokens": 33}),
]


@pytest.mark.parametrize(("backend", "kwargs"), WAYS, ids=str)
def test_however_it_is_batched(path, alone, backend, kwargs):
    llm = engine(path, moe_backend=backend, **kwargs)
    outputs = llm.generate(prompts(), PARAMS, use_tqdm=False)
    assert assert_same(alone(backend), outputs) <= ACCEPTED[backend]
    llm.llm_engine.engine.check_integrity()
    assert llm.llm_engine.engine.stats.kv_blocks_used == 0


@pytest.mark.parametrize(("backend", "prefix_caching"), [("cpu", True), ("cpu", False), ("reference", True)])
def test_under_forced_preemptions(path, alone, backend, prefix_caching):
    """A third of the running sequences lose their blocks every few steps, and KV memory is scarce besides."""
    limits = {"kv_cache_memory": "1MB", "max_model_len": 128}
    llm = engine(path, moe_backend=backend, enable_prefix_caching=prefix_caching, **limits)
    inner = llm.llm_engine
    for i, prompt in enumerate(prompts()):
        inner.add_request(str(i), prompt, PARAMS)
    rng, done, steps = random.Random(1), {}, 0
    while inner.has_unfinished_requests():
        done |= {int(out.request_id): out for out in inner.step() if out.finished}
        steps += 1
        scheduler = inner.engine.scheduler
        if steps % 5 == 0 and scheduler.running:
            for seq in rng.sample(scheduler.running, max(1, len(scheduler.running) // 3)):
                scheduler.preempt(seq)
            inner.engine.check_integrity()
    assert inner.engine.stats.preemptions_total >= 50
    assert assert_same(alone(backend), [done[i] for i in range(64)]) <= ACCEPTED[backend]
    assert inner.engine.stats.kv_blocks_used == 0


def test_a_second_round_hits_the_prefix_cache(path, alone):
    llm = engine(path)
    llm.generate(prompts(), PARAMS, use_tqdm=False)
    outputs = llm.generate(prompts(), PARAMS, use_tqdm=False)
    long = [out for out in outputs if len(out.prompt_token_ids) > 16]
    assert long and all(out.num_cached_tokens >= 16 for out in long)
    assert assert_same(alone("cpu"), outputs) == 0


def test_sampling_with_a_seed_does_not_depend_on_the_batch(path):
    params = [SamplingParams(temperature=1.3, top_p=0.95, seed=i, max_tokens=TOKENS) for i in range(64)]
    alone = engine(path, enable_prefix_caching=False)
    one = [alone.generate(p, q, use_tqdm=False)[0] for p, q in zip(prompts(), params, strict=True)]
    many = engine(path, max_num_batched_tokens=40).generate(prompts(), params, use_tqdm=False)
    assert tokens_of(one) == tokens_of(many)


FORMATS = {
    "f32": {"dtype": "float32"},
    "f16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "w8": {"dtype": "bfloat16", "quantization": "w8a16", "quantization_group_size": 32},
    "w4": {"dtype": "bfloat16", "quantization": "w4a16", "quantization_group_size": 32},
    "w8a8": {"dtype": "bfloat16", "quantization": "w8a8", "quantization_group_size": 32},
}


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.usefixtures("isa")
def test_no_neighbour_shows_in_any_format(path, weights):
    """Alone, together in one batch (recorded), and together without recording."""
    some = prompts()[:12]
    alone = engine(path, moe_backend="cpu", enable_prefix_caching=False, **FORMATS[weights])
    expected = [alone.generate(prompt, PARAMS, use_tqdm=False)[0] for prompt in some]
    for way in ({}, {"enforce_eager": True, "max_num_batched_tokens": 50}):
        outputs = engine(path, moe_backend="cpu", **FORMATS[weights], **way).generate(some, PARAMS, use_tqdm=False)
        assert tokens_of(outputs) == tokens_of(expected)
        assert logprobs_of(outputs) == logprobs_of(expected)


def logprobs_of(outputs) -> list:
    """Every reported log-probability, to the last bit."""
    return [[{t: e.logprob for t, e in row.items()} for row in output.outputs[0].logprobs] for output in outputs]
