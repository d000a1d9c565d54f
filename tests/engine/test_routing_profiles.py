"""Routing profiles on a running model: rules by tag happen, requests under way keep theirs, KV of two never mixes."""

import asyncio
import json
import math
import os
import random
import time

import pytest

from moesaic import LLM, EngineArgs, SamplingParams
from moesaic.adapt.pruning import measure_effect
from moesaic.core.errors import ConfigError, RequestError
from moesaic.engine.async_engine import AsyncEngine

STEPS = 12
A = {"name": "a", "rules": [{"ban": [0, 3]}, {"tags": ["sums"], "top_k": 1}]}
B = {"name": "b", "rules": [{"layers": [1], "bias": {2: 3.0}, "temperature": 2.0}]}
OPTIONS_A = {"profile": "", "ban": [0, 3]}
OPTIONS_SUMS = {"profile": "", "ban": [0, 3], "top_k": 1}
OPTIONS_B = {"profile": "", "layers": [1], "bias": {2: 3.0}, "temperature": 2.0}
PROMPT = [random.Random(1).randrange(128) for _ in range(50)]


def asked(**options):
    routing = options or None
    return SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=2, routing=routing)


def engine(path, **kwargs):
    return LLM(path, skip_tokenizer_init=True, threads=1, max_num_seqs=8, **kwargs)


def given(output):
    assert output.error is None
    completion = output.outputs[0]
    return completion.token_ids, [{t: entry.logprob for t, entry in row.items()} for row in completion.logprobs]


def answer(llm, **options):
    [output] = llm.generate(PROMPT, asked(**options), use_tqdm=False)
    return given(output)


@pytest.fixture(scope="module")
def path(tiny_model):
    return tiny_model("qwen3_moe")


@pytest.fixture(scope="module")
def expected(path):
    """What each way of routing gives by itself, without a prefix cache."""
    llm = engine(path, enable_prefix_caching=False)
    ways = {"own": {}, "a": OPTIONS_A, "sums": OPTIONS_SUMS, "b": OPTIONS_B}
    told = {name: answer(llm, **options) for name, options in ways.items()}
    assert all(told[x] != told[y] for x in ways for y in ways if x < y)
    return told


def test_rules_by_tag(path, expected):
    llm = engine(path)
    assert [llm.load_routing_profile(profile) for profile in (A, B)] == ["a", "b"]
    for _ in range(2):  # the second time from the prefix cache
        assert answer(llm) == expected["own"]
        assert answer(llm, profile="a") == answer(llm, profile="a", tags=["other"]) == expected["a"]
        assert answer(llm, profile="a", tags=["sums"]) == expected["sums"]
        assert answer(llm, profile="b", tags=["sums"]) == expected["b"]
    llm.set_routing_profile("a")
    assert answer(llm) == expected["a"] and answer(llm, tags=["sums"]) == expected["sums"]
    assert answer(llm, profile="") == expected["own"] and answer(llm, profile="b") == expected["b"]
    assert llm.routing_profiles()["active"] == "a"
    [output] = llm.generate(PROMPT, asked(tags=["sums"]), use_tqdm=False)
    assert (output.routing.profile, output.routing.tags, len(output.routing.rules)) == ("a", ["sums"], 2)
    assert output.routing.version == llm.routing_profiles()["profiles"][0]["version"]


def test_a_switch_mid_way_mixes_nothing(path, expected):
    """Requests of three ways under way at once, each with the same prompt, begun before and after switches; those begun
    later find in the prefix cache only what was computed in their way."""
    llm = engine(path, max_num_batched_tokens=24)
    llm.load_routing_profile(A)
    llm.load_routing_profile(B)
    inner, done, order = llm.llm_engine, {}, ["own", "a", "b", "own", "b", "a", "a", "own", "b"]
    for number, way in enumerate(order):
        llm.set_routing_profile(None if way == "own" else way)
        inner.add_request(f"{number} {way}", PROMPT, asked())
        for _ in range(3):
            done |= {output.request_id: output for output in inner.step() if output.finished}
    while inner.has_unfinished_requests():
        done |= {output.request_id: output for output in inner.step() if output.finished}
    assert len(done) == len(order)
    for name, output in done.items():
        assert given(output) == expected[name.split()[1]], name
    assert any(output.num_cached_tokens for output in done.values())


def test_a_file_that_changes_mid_way(path, expected, tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(A))
    llm = engine(path, moe_routing_profile=[str(file)])
    clock = [time.monotonic()]
    monkeypatch.setattr("moesaic.engine.routing_profiles.monotonic", lambda: clock[0])
    inner, done = llm.llm_engine, {}
    for number, (rules, way) in enumerate([(A, "a"), (B, "b"), (None, "b"), (A, "a")]):
        file.write_text("{" if rules is None else json.dumps(rules | {"name": "a"}))
        os.utime(file, ns=(0, number))
        clock[0] += 2
        inner.add_request(f"{number} {way}", PROMPT, asked())
        for _ in range(3):
            done |= {output.request_id: output for output in inner.step() if output.finished}
    while inner.has_unfinished_requests():
        done |= {output.request_id: output for output in inner.step() if output.finished}
    assert {name: given(output) == expected[name.split()[1]] for name, output in done.items()} == {
        "0 a": True,
        "1 b": True,
        "2 b": True,  # the file was broken: its profile stayed
        "3 a": True,
    }
    versions = [done[name].routing.version for name in sorted(done)]
    assert versions[0] == versions[3] != versions[1] == versions[2]


def test_bad_profiles(path, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "bad"\n[[rules]]\nban = [99]\n')
    with pytest.raises(ConfigError, match="bad.toml: .*does not fit the model: rule 1: ban names expert 99"):
        engine(path, moe_routing_profile=[str(bad)])
    with pytest.raises(ConfigError, match="gone.toml cannot be read"):
        engine(path, moe_routing_profile=[str(tmp_path / "gone.toml")])
    llm = engine(path)
    with pytest.raises(ConfigError, match="names expert 99"):
        llm.load_routing_profile(bad)
    with pytest.raises(RequestError, match="unknown routing profile 'bad'; there is none"):
        llm.set_routing_profile("bad")
    with pytest.raises(RequestError, match="unknown routing profile"):
        answer(llm, profile="bad")
    llm.load_routing_profile({"name": "least", "rules": [{"ban": list(range(7))}]})
    with pytest.raises(RequestError, match="leaves none of the 8 experts"):
        answer(llm, profile="least", ban=[7])
    assert len(answer(llm, profile="least")[0]) == STEPS  # one expert is enough


def test_models_without_experts(tiny_model, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(A))
    with pytest.raises(ConfigError, match="is for a model with experts, and this one has none"):
        engine(tiny_model("llama"), moe_routing_profile=[str(file)])
    assert len(answer(engine(tiny_model("llama")))[0]) == STEPS


def test_the_effect_of_a_profile(path, tiny_model):
    """The oracle is a model whose config says one expert a token, which reads the same answers."""
    llm = engine(path, enable_prefix_caching=False)
    prompts = [PROMPT[:n] for n in (5, 20, 50)]
    same = measure_effect(llm, prompts, [{"top_k": 3}] * 3, 8)  # as the model has
    assert same.perplexity == pytest.approx(same.steered_perplexity, rel=1e-4)
    assert (same.agreement, same.tokens) == (1.0, 24)
    other = measure_effect(llm, prompts, [{"top_k": 1}] * 3, 8)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    whole = [[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in llm.generate(prompts, greedy, use_tqdm=False)]
    frugal = engine(tiny_model("qwen3_moe", num_experts_per_tok=1), enable_prefix_caching=False)
    read = frugal.generate(whole, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    pairs = [
        pair for o, ids in zip(read, whole, strict=True) for pair in list(zip(o.prompt_logprobs, ids, strict=True))[-8:]
    ]
    rows = [row[token] for row, token in pairs]
    assert other.perplexity == same.perplexity
    assert other.steered_perplexity == pytest.approx(math.exp(-sum(row.logprob for row in rows) / 24), rel=1e-4)
    assert other.agreement < 1 and other.agreement == pytest.approx(sum(row.rank == 1 for row in rows) / 24)


def test_the_api_process_takes_up_changes_by_itself(path, tmp_path):
    """A stream begun before the file changed ends as it began, one begun after it is of the new version."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(A))
    args = {"model": path, "skip_tokenizer_init": True, "threads": 1, "kv_cache_memory": "16MiB"}

    async def version_of(engine, name, ready=None):
        outputs = []
        async for output in engine.generate(PROMPT, asked(), name):
            outputs.append(output)
            if ready is not None:
                ready.set()
        assert outputs[-1].finished and outputs[-1].error is None
        return outputs[-1].routing.version

    async def changed(engine, old):
        for _ in range(200):
            if engine.profiles.listing()["profiles"][0]["version"] != old:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the change was not seen")

    async def scenario():
        engine = await AsyncEngine.start(EngineArgs(moe_routing_profile=[str(file)], **args))
        try:
            first = await version_of(engine, "first")
            begun = asyncio.Event()
            under_way = asyncio.create_task(version_of(engine, "under way", begun))
            await begun.wait()
            file.write_text(json.dumps(B | {"name": "a"}))
            await changed(engine, first)
            assert await under_way == first != await version_of(engine, "last")
        finally:
            await engine.shutdown()

    asyncio.run(scenario())
    file.write_text(json.dumps({"name": "a", "rules": [{"layers": [7], "top_k": 1}]}))
    with pytest.raises(ConfigError, match="names layer 7"):
        asyncio.run(AsyncEngine.start(EngineArgs(moe_routing_profile=[str(file)], **args)))
