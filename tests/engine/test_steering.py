"""Requests that steer their routes: what they ask for happens, to them alone, whatever the step looks like.

A tiny model whose config says another top_k is the oracle of per-request top_k; bans, biases and temperatures are told
from what the routers of the running engine are given and choose. `tests/kernels/test_ruled_routing.py` holds the
choice itself against numpy.
"""

import random

import pytest
import torch

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError, RequestError
from moesaic.experts import routing as routing_module

PLAIN = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=3)
FAMILIES = [
    "qwen3_moe",
    "granitemoe",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "phimoe",
    "longcat_flash",
    "gemma4_text",
    "jetmoe",
]


def steered(max_tokens=10, **options):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=3, routing=options)


def engine(path, **kwargs):
    return LLM(path, skip_tokenizer_init=True, threads=1, **{"max_num_seqs": 8, **kwargs})


def prompt(seed, length):
    rng = random.Random(seed)
    return [rng.randrange(128) for _ in range(length)]


def given(output):
    """Tokens, and their log-probabilities to the last bit."""
    completion = output.outputs[0]
    rows = [{token: entry.logprob for token, entry in row.items()} for row in completion.logprobs]
    return completion.token_ids, rows


def alone(llm, text, params):
    [output] = llm.generate(text, params, use_tqdm=False)
    assert output.error is None
    return given(output)


BATCH = [
    (prompt(1, 9), PLAIN),
    (prompt(2, 17), steered(tags=["finance"], ban=[0, 3], bias={2: 1.5})),
    (prompt(3, 1), steered(tags=["law"], top_k=1)),
    (prompt(4, 30), steered(temperature=3.0, bias={i: 0.1 * i for i in range(4)})),
    (prompt(5, 4), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=3)),
]


@pytest.mark.parametrize("eager", [False, True], ids=["replayed", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_gives_in_a_batch_what_it_gives_alone(tiny_model, family, eager, cpu_library):
    llm = engine(tiny_model(family), enforce_eager=eager, enable_prefix_caching=False, moe_backend="cpu")
    apart = [alone(llm, text, params) for text, params in BATCH]
    together = llm.generate([text for text, _ in BATCH], [p for _, p in BATCH], use_tqdm=False)
    assert [given(output) for output in together] == apart
    assert alone(llm, BATCH[1][0], PLAIN) != apart[1]
    fresh = engine(tiny_model(family), enforce_eager=not eager, enable_prefix_caching=False, moe_backend="cpu")
    assert [alone(fresh, text, params) for text, params in BATCH[:3]] == apart[:3]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("top_k", [1, 2, 5, 8])
def test_top_k_of_a_request_is_that_of_a_model(tiny_model, backend, top_k, cpu_library):
    llm = engine(tiny_model("qwen3_moe"), moe_backend=backend)
    other = engine(tiny_model("qwen3_moe", num_experts_per_tok=top_k), moe_backend=backend)
    texts = [prompt(seed, 3 + 7 * seed) for seed in range(3)]
    neighbour = alone(llm, prompt(9, 12), PLAIN)
    outputs = llm.generate([*texts, prompt(9, 12)], [steered(top_k=top_k)] * 3 + [PLAIN], use_tqdm=False)
    expected = other.generate(texts, PLAIN, use_tqdm=False)
    if backend == "cpu":
        assert [given(o) for o in outputs[:3]] == [given(o) for o in expected]
        assert given(outputs[3]) == neighbour
    else:  # torch's products depend on the rows beside
        assert [o.outputs[0].token_ids for o in outputs[:3]] == [o.outputs[0].token_ids for o in expected]


@pytest.mark.parametrize("budget", [2048, 5])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_chunks_and_preemptions_change_nothing(tiny_model, budget, prefix_caching, cpu_library):
    path = tiny_model("qwen3_moe")
    quiet = engine(path, enable_prefix_caching=False, moe_backend="cpu")
    batch = [*BATCH, (prompt(6, 25), steered(top_k=6, layers=[1])), (prompt(7, 33), steered(allow=[1, 4]))]
    expected = [alone(quiet, text, params) for text, params in batch]
    llm = engine(path, max_num_batched_tokens=budget, enable_prefix_caching=prefix_caching, moe_backend="cpu")
    inner, rng = llm.llm_engine, random.Random(budget)
    for i, (text, params) in enumerate(batch):
        inner.add_request(str(i), text, params)
    outputs, scheduler = {}, inner.engine.scheduler
    while inner.has_unfinished_requests():
        if scheduler.running and rng.random() < 0.4:
            scheduler.preempt(rng.choice(scheduler.running))
        outputs.update((output.request_id, output) for output in inner.step() if output.finished)
    assert inner.engine.stats.preemptions_total >= 5
    assert [given(outputs[str(i)]) for i in range(len(batch))] == expected
    steering = inner.engine.executor.model.steering
    assert not steering.routings and not steering._number_of and not steering._users


def test_different_routes_never_share_what_was_computed(tiny_model, cpu_library):
    path = tiny_model("qwen3_moe")
    text = prompt(11, 70)
    variants = [
        PLAIN,
        steered(top_k=1),
        steered(ban=[1]),
        steered(tags=["a"]),
        steered(ban=[1], layers=[0]),
        steered(bias={3: 2.0}),
        steered(bias={3: 2.5}),
        steered(temperature=2.0),
        steered(top_k=5),
    ]
    uncached = engine(path, enable_prefix_caching=False, moe_backend="cpu")
    expected = [alone(uncached, text, params) for params in variants]
    llm = engine(path, moe_backend="cpu")
    cached = []
    for _ in range(2):
        for params, wanted in zip(variants, expected, strict=True):
            [output] = llm.generate(text, params, use_tqdm=False)
            assert given(output) == wanted
            cached.append(output.num_cached_tokens)
    tags = variants.index(variants[3])
    assert [tokens > 0 for tokens in cached[: len(variants)]] == [i == tags for i in range(len(variants))]
    assert all(tokens == 64 for tokens in cached[len(variants) :])
    assert llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)[0].num_cached_tokens == 0
    routed = SamplingParams(max_tokens=1, return_routed_experts=True)
    assert llm.generate(text, routed, use_tqdm=False)[0].num_cached_tokens == 0


def test_what_routers_choose_is_what_was_asked_for(tiny_model, monkeypatch):
    llm = engine(tiny_model("qwen3_moe"), enforce_eager=True)
    seen = []
    original = routing_module.choose_experts

    def noted(route, logits, *args, **kwargs):
        chosen = original(route, logits, *args, **kwargs)
        seen.append((logits.clone(), chosen.ids.clone(), chosen.weights.clone()))
        return chosen

    monkeypatch.setattr(routing_module, "choose_experts", noted)
    llm.generate(prompt(1, 20), steered(max_tokens=3, ban=[0, 7], bias={2: 1.0}, top_k=2, layers=[1]), use_tqdm=False)
    layers = len(llm.llm_engine.engine.info.moe.layers)
    assert len(seen) == 3 * layers
    for call, (logits, ids, weights) in enumerate(seen):
        if call % layers == 1:
            logits = logits.clone()
            logits[:, 2] += 1.0
            logits[:, [0, 7]] = float("-inf")
            probabilities = logits.softmax(-1)
            best = probabilities.topk(2)
            assert ids[:, :2].tolist() == best.indices.tolist()
            torch.testing.assert_close(weights[:, :2], best.values / best.values.sum(-1, keepdim=True))
            assert (ids[:, 2:] == -1).all() and not weights[:, 2:].any()
        else:
            assert ids.tolist() == logits.topk(3).indices.tolist()


def test_steered_decoding_is_replayed(tiny_model, cpu_library):
    llm = engine(tiny_model("qwen3_moe"), moe_backend="cpu")
    step = llm.llm_engine.engine.executor.runner.recorded
    taken = []
    step.program.run, run = lambda rows: taken.append(rows) or run(rows), step.program.run
    llm.generate(prompt(1, 4), steered(top_k=1), use_tqdm=False)
    assert taken == [1] * 9
    expected = alone(engine(tiny_model("qwen3_moe"), moe_backend="cpu", enforce_eager=True), prompt(1, 4), PLAIN)
    for top_k, recordings in ((4, [0, 4]), (7, [0, 4, 8]), (5, [0, 4, 8])):  # more than the model's own 3
        outputs = llm.generate([prompt(1, 4)] * 2, [PLAIN, steered(top_k=top_k, max_tokens=5)], use_tqdm=False)
        assert given(outputs[0]) == expected
        assert [room for room, _ in step._recordings] == recordings
        assert taken[9:] == [1] * 5
        del taken[9:]
    ran = [recording.program for recording in step._recordings.values()]
    assert len({id(program) for program in ran}) == 3


def test_siblings_and_a_request_that_is_aborted(tiny_model, cpu_library):
    llm = engine(tiny_model("qwen3_moe"), moe_backend="cpu")
    many = SamplingParams(n=3, temperature=0, max_tokens=5, ignore_eos=True, routing={"top_k": 1})
    [output] = llm.generate(prompt(1, 40), many, use_tqdm=False)
    [one] = llm.generate(prompt(1, 40), steered(max_tokens=5, top_k=1), use_tqdm=False)
    assert [c.token_ids for c in output.outputs] == [one.outputs[0].token_ids] * 3
    inner = llm.llm_engine
    inner.add_request("gone", prompt(2, 4), steered(ban=[1]))
    inner.step()
    inner.abort_request("gone")
    assert not inner.engine.executor.model.steering.routings


def test_what_a_request_used_is_told(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    plain, tagged = llm.generate([[1], [1]], [PLAIN, steered(tags=["x"], top_k=2)], use_tqdm=False)
    assert plain.routing is None
    assert tagged.routing.tags == ["x"]
    assert [rule.top_k for rule in tagged.routing.rules] == [2]


def test_what_cannot_be_is_refused_and_harms_nobody(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    for options, words in [
        ({"top_k": 9}, "has 8 experts"),
        ({"ban": list(range(8))}, "leaves none"),
        ({"bias": [0.0] * 7}, "has 7 numbers"),
        ({"layers": [99], "top_k": 1}, "names layer 99"),
    ]:
        with pytest.raises(RequestError, match=words):
            llm.generate([[1], [2]], [PLAIN, steered(**options)], use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    dense = engine(tiny_model("llama"))
    assert dense.generate([1], steered(tags=["x"]), use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(RequestError, match="this model has none"):
        dense.generate([1], steered(top_k=1), use_tqdm=False)


@pytest.mark.parametrize("family", ["afmoe", "jamba"])
def test_transformers_own_routes_stay(tiny_model, family):
    """Of a model that is computed in one pass a step, and of one computed sequence after sequence."""
    llm = engine(tiny_model(family), model_impl="transformers")
    shape = llm.llm_engine.engine.info.moe
    assert shape.layers and all(layer.num_experts >= layer.top_k >= 1 for layer in shape.layers)
    with pytest.raises(RequestError, match="routing cannot be changed: transformers' own code"):
        llm.generate([1, 2], steered(top_k=1), use_tqdm=False)
    assert llm.generate([1, 2], steered(tags=["x"]), use_tqdm=False)[0].routing.tags == ["x"]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "longcat_flash"])
def test_top_k_of_the_server(tiny_model, family, cpu_library):
    plain = engine(tiny_model(family), moe_backend="cpu")
    own = plain.llm_engine.engine.info.moe.layers[0].top_k
    for top_k in (1, own + 1):
        llm = engine(tiny_model(family), moe_backend="cpu", moe_top_k=top_k)
        assert {layer.top_k for layer in llm.llm_engine.engine.info.moe.layers} == {top_k}
        assert alone(llm, prompt(1, 20), PLAIN) == alone(plain, prompt(1, 20), steered(top_k=top_k))
        assert alone(llm, prompt(1, 20), steered(top_k=own)) == alone(plain, prompt(1, 20), PLAIN)
        assert llm.llm_engine.engine.scheduler.kv.routes.of(None)


@pytest.mark.parametrize(
    ("family", "kwargs", "words"),
    [
        ("qwen3_moe", {"moe_top_k": 9}, "moe_top_k is 9, but layer 0 has 8 experts"),
        ("qwen3_moe", {"moe_top_k": 0}, "moe_top_k must be a whole number of at least 1"),
        ("llama", {"moe_top_k": 1}, "has no experts"),
        ("afmoe", {"moe_top_k": 1, "model_impl": "transformers"}, "transformers' own code chooses"),
    ],
)
def test_a_top_k_of_the_server_that_cannot_be(tiny_model, family, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        engine(tiny_model(family), **kwargs)


def test_attentions_experts_keep_their_routes(tiny_model, cpu_library):
    llm = engine(tiny_model("jetmoe"), enforce_eager=True)
    stats = llm.llm_engine.engine.executor.model.expert_stats
    llm.generate(prompt(1, 12), steered(max_tokens=1, top_k=1, layers=[0]), use_tqdm=False)
    used = {(tap.layer, tap.part): (ids >= 0).sum(1).unique().tolist() for tap, ids, _ in stats.of_step(12)}
    own = llm.llm_engine.engine.info.moe.layers[0].top_k
    assert used[0, "ffn"] == [1]
    assert used[0, "attention"] == used[1, "attention"] == used[1, "ffn"] == [own]


def test_while_every_operation_is_looked_at(tiny_model, cpu_library):
    path = tiny_model("qwen3_moe")
    watched, plain = engine(path, diagnose=True), engine(path)
    params = steered(max_tokens=4, top_k=5, allow=[0, 1, 2])
    assert alone(watched, prompt(1, 5), params) == alone(plain, prompt(1, 5), params)
