"""Routes that requests get back: transformers' own, whole and once, however the tokens were computed."""

import numpy as np
import pytest
import torch

from moesaic import LLM, RequestOutput, SamplingParams
from moesaic.core.errors import RequestError
from moesaic.core.messages import StepEvents, decode_from_engine, encode
from tests.tiny_models import tiny_reference

PROMPT = [(11 * i + 5) % 128 for i in range(37)]


def params(tokens=10, **options):
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, return_routed_experts=True, **options)


def engine(path, **options):
    options = {"skip_tokenizer_init": True, "threads": 1, "block_size": 4, "max_num_seqs": 8} | options
    return LLM(path, **options)


def routed(output: RequestOutput, index=0):
    """Token ids and routes of a finished completion: a token each, but for the last."""
    completion = output.outputs[index]
    routes = completion.routed_experts
    tokens = [*output.prompt_token_ids, *completion.token_ids]
    assert routes.start == 0 and routes.num_tokens == len(tokens) - 1
    assert routes.ids.shape == routes.weights.shape == (len(tokens) - 1, len(routes.layers), routes.ids.shape[2])
    assert routes.ids.dtype == np.int16 and routes.weights.dtype == np.float32
    return tokens, routes


@pytest.mark.parametrize(("family", "renormalises"), [("qwen3_moe", True), ("olmoe", False)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_routes_are_those_of_transformers(tiny_model, family, renormalises, backend):
    """What its routers' logits come to in plain torch: a softmax, the k best, and their share."""
    if backend == "cpu":
        pytest.importorskip("moesaic.kernels.cpu.library").supported_isas()
    llm = engine(tiny_model(family), moe_backend=backend)
    tokens, routes = routed(llm.generate([PROMPT], params(), use_tqdm=False)[0])
    model = tiny_reference(family, vocab_size=128)
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]), output_router_logits=True).router_logits
    k = model.config.num_experts_per_tok
    assert routes.layers == list(range(len(logits)))
    for layer, of_layer in enumerate(logits):
        best = torch.topk(torch.softmax(of_layer.float(), -1), k)
        weights = best.values / best.values.sum(-1, keepdim=True) if renormalises else best.values
        assert routes.ids[:, layer].tolist() == best.indices.tolist()
        np.testing.assert_allclose(routes.weights[:, layer], weights, atol=1e-5)


WAYS = {
    "replayed": {},
    "eager": {"enforce_eager": True},
    "in chunks": {"max_num_batched_tokens": 8},
    "in chunks of odd sizes": {"max_num_batched_tokens": 7, "enforce_eager": True},
}


@pytest.fixture(scope="module")
def expected(tiny_model):
    outputs = engine(tiny_model("qwen3_moe"), max_num_batched_tokens=64).generate(
        [PROMPT, PROMPT[:3]], params(), use_tqdm=False
    )
    return [routed(output) for output in outputs]


def assert_equal(got, expected):
    for (tokens, routes), (other_tokens, other) in zip(got, expected, strict=True):
        assert tokens == other_tokens
        assert (routes.ids == other.ids).all() and (routes.weights == other.weights).all()


@pytest.mark.parametrize("way", WAYS)
def test_the_way_they_were_computed_does_not_show(tiny_model, expected, way):
    llm = engine(tiny_model("qwen3_moe"), **WAYS[way])
    silent = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    outputs = llm.generate([PROMPT, PROMPT[5:], PROMPT[:3]], [params(), silent, params()], use_tqdm=False)
    assert outputs[1].outputs[0].routed_experts is None
    assert_equal([routed(outputs[0]), routed(outputs[2])], expected)


def test_preemption_neither_repeats_nor_loses_tokens(tiny_model):
    path = tiny_model("qwen3_moe")
    prompts = [[(7 * i + j) % 128 for j in range(30)] for i in range(4)]
    roomy = engine(path).generate(prompts, params(30), use_tqdm=False)
    llm = engine(path, kv_cache_memory=_memory_of(path, blocks=32), max_model_len=64)
    outputs = llm.generate(prompts, params(30), use_tqdm=False)
    assert llm.llm_engine.engine.stats.preemptions_total > 0
    assert_equal([routed(o) for o in outputs], [routed(o) for o in roomy])


def _memory_of(path, blocks):
    """Bytes of so many blocks of KV cache."""
    return engine(path).llm_engine.engine.executor.kv.bytes_per_block * blocks


def test_cached_prefixes_are_computed_again(tiny_model, expected):
    llm = engine(tiny_model("qwen3_moe"))
    silent = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    llm.generate([PROMPT, PROMPT], silent, use_tqdm=False)
    for _ in range(2):
        output = llm.generate([PROMPT], params(), use_tqdm=False)[0]
        assert output.num_cached_tokens == 0
        assert_equal([routed(output)], expected[:1])
    assert llm.generate([PROMPT], silent, use_tqdm=False)[0].num_cached_tokens > 0


@pytest.mark.parametrize("budget", [8, 64])
def test_every_completion_has_the_prompts_routes(tiny_model, expected, budget):
    llm = engine(tiny_model("qwen3_moe"), max_num_batched_tokens=budget)
    many = SamplingParams(n=3, seed=1, max_tokens=9, ignore_eos=True, return_routed_experts=True)
    output = llm.generate([PROMPT], many, use_tqdm=False)[0]
    assert len({tuple(c.token_ids) for c in output.outputs}) == 3
    for index in range(3):
        tokens, routes = routed(output, index)
        assert (routes.ids[: len(PROMPT)] == expected[0][1].ids[: len(PROMPT)]).all()
        alone = llm.generate([tokens[:-1]], params(1), use_tqdm=False)[0]
        assert_equal([(tokens[:-1], routes)], [(tokens[:-1], routed(alone)[1])])


def test_layers_without_experts_are_left_out(tiny_model):
    llm = engine(tiny_model("qwen3_moe", mlp_only_layers=[1], num_hidden_layers=4))
    assert routed(llm.generate([PROMPT], params(), use_tqdm=False)[0])[1].layers == [0, 2, 3]


@pytest.mark.parametrize(
    "family", ["mixtral", "deepseek_v3", "llama4_text", "jetmoe", "gpt_oss", "longcat_flash", "beam", "jamba"]
)
def test_routes_count_what_the_statistics_count(tiny_model, family):
    llm = engine(tiny_model(family), model_impl="transformers" if family == "jamba" else "auto")
    stats = llm.llm_engine.engine.executor.model.expert_stats
    before = stats.counts.clone()
    outputs = llm.generate([PROMPT, PROMPT[:9]], params(), use_tqdm=False)
    counted = torch.zeros_like(stats.counts)
    for _, routes in map(routed, outputs):
        assert routes.layers == [tap.layer for tap in stats.taps]
        for i, tap in enumerate(stats.taps):
            chosen = torch.from_numpy(routes.ids[:, i].astype(np.int64))
            counted[tap.row] += torch.bincount(chosen[chosen >= 0], minlength=counted.shape[1])
    assert counted.any() and torch.equal(counted, stats.counts - before)


def test_choices_beside_a_request_with_more_or_fewer_of_them(tiny_model, expected):
    """Places that a token does not use hold -1 and 0, and a request has as many as it uses, alone or not."""
    llm = engine(tiny_model("qwen3_moe"))
    wide, narrow, banned = {"top_k": 6, "layers": [1]}, {"top_k": 1}, {"allow": [2, 5]}
    many = [params(), *(params(routing=options) for options in (wide, narrow, banned))]
    own, *steered = map(routed, llm.generate([PROMPT] * 4, many, use_tqdm=False))
    assert_equal([own], expected[:1])
    k = own[1].ids.shape[2]
    used = [(routes.ids >= 0).sum(2) for _, routes in steered]
    assert used[0].tolist() == [[k, 6, k]] * len(used[0])
    assert steered[1][1].ids.shape[2] == 1 and set(steered[2][1].ids.flatten().tolist()) == {2, 5}
    for _, routes in steered:
        assert ((routes.ids >= 0) == (routes.weights > 0)).all()


def test_a_model_without_experts_refuses(tiny_model):
    with pytest.raises(RequestError, match="no experts") as caught:
        engine(tiny_model("llama")).generate([PROMPT], params(), use_tqdm=False)
    assert caught.value.param == "return_routed_experts"


def test_only_what_is_new_is_told_in_deltas_and_prompts_wait_for_the_first_token(tiny_model, expected):
    llm_engine = engine(tiny_model("qwen3_moe"), max_num_batched_tokens=8).llm_engine
    request = llm_engine.frontend.admit("r", PROMPT, params(), delta=True)
    llm_engine.engine.add(request)
    pieces, lengths = [], []
    while llm_engine.has_unfinished_requests():
        updates = llm_engine.engine.step()
        assert decode_from_engine(encode(StepEvents(updates, llm_engine.engine.stats))).updates == updates
        for output in llm_engine.frontend.process(updates)[0]:
            [part] = output.outputs
            assert part.token_ids and part.routed_experts.end == len(PROMPT) + len(lengths)
            lengths.append(part.routed_experts.num_tokens)
            pieces.append(part.routed_experts.ids)
    assert lengths == [len(PROMPT), *[1] * 9]
    assert (np.concatenate(pieces) == expected[0][1].ids).all()
