"""Recorded routes are those that requests are given back, each token once, of whom they should be."""

import numpy as np
import pytest

from moesaic import LLM, SamplingParams
from moesaic.core.errors import RequestError
from moesaic.experts.profile_file import read_routes
from moesaic.experts.recorder import RouteRecorder, Rows

PROMPTS = [[(7 * i + j) % 128 for j in range(30)] for i in range(4)]
TAGS = [["a"], [], ["a", "b"], ["c"]]


def params(tags, tokens=12):
    return SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, return_routed_experts=True, routing={"tags": tags}
    )


def engine(path, **options):
    return LLM(path, **{"skip_tokenizer_init": True, "threads": 1, "block_size": 4, "max_num_seqs": 8} | options)


def expected(outputs, tags=TAGS, **options):
    """What a recorder makes of the routes that requests were given, and their ids."""
    recorder = RouteRecorder("", [0, 1, 2], [8] * 3, [3] * 3, **options)
    for output, of_request in zip(outputs, tags, strict=True):
        routes = output.outputs[0].routed_experts
        recorder.add(Rows(routes.ids, routes.weights, of_request))
    return recorder.profile()


def assert_equal(read, profile):
    assert read.tokens == profile.tokens and (read.pairs == profile.pairs).all()
    assert (read.counts[0] == profile.counts[0]).all()
    np.testing.assert_allclose(read.weights[0], profile.weights[0], rtol=1e-5)
    assert set(read.tags) == set(profile.tags)
    for tag in read.tags:
        for mine, other in zip(read.of(tag)[0], profile.of(tag)[0], strict=True):
            assert (mine == other).all()
        assert read.tokens_of_tags[read.tags.index(tag)] == profile.tokens_of_tags[profile.tags.index(tag)]


@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": True, "max_num_batched_tokens": 9}, {"moe_backend": "reference"}],
    ids=["replayed", "chunked", "reference"],
)
def test_what_is_recorded_is_what_requests_are_told(tiny_model, tmp_path, options):
    llm = engine(tiny_model("qwen3_moe"), **options)
    llm.generate(PROMPTS[:1], params(["before"]), use_tqdm=False)
    llm.start_moe_profile(tmp_path / "routes.safetensors", stream_tokens=50)
    outputs = llm.generate(PROMPTS, [params(tags) for tags in TAGS], use_tqdm=False)
    told = llm.stop_moe_profile()
    llm.generate(PROMPTS[:1], params(["after"]), use_tqdm=False)
    read = read_routes(told["path"])
    assert told["tokens"] == read.tokens == 4 * (30 + 11)
    assert told["bytes"] == (tmp_path / "routes.safetensors").stat().st_size
    assert (read.layers, read.num_experts, read.top_k) == ([0, 1, 2], [8] * 3, [3] * 3)
    assert_equal(read, expected(outputs))
    assert read.stream.shape == (50, 3, 3)
    first = outputs[0].outputs[0].routed_experts.ids
    assert (read.stream[:9] == first[:9]).all()  # steps go through requests in order


def test_neither_recomputed_tokens_nor_cached_ones_are_recorded_again(tiny_model, tmp_path):
    path = tiny_model("qwen3_moe")
    memory = engine(path).llm_engine.engine.executor.kv.bytes_per_block * 32
    llm = engine(path, kv_cache_memory=memory, max_model_len=64)
    llm.start_moe_profile(tmp_path / "routes.safetensors")
    outputs = llm.generate(PROMPTS, [params(tags, 30) for tags in TAGS], use_tqdm=False)
    llm.stop_moe_profile()
    assert llm.llm_engine.engine.stats.preemptions_total > 0
    assert_equal(read_routes(str(tmp_path / "routes.safetensors")), expected(outputs))
    silent = SamplingParams(temperature=0, max_tokens=1)
    llm.generate(PROMPTS[:1], silent, use_tqdm=False)
    llm.start_moe_profile(tmp_path / "cached.safetensors")
    [output] = llm.generate(PROMPTS[:1], silent, use_tqdm=False)
    assert llm.stop_moe_profile()["tokens"] == 30 - output.num_cached_tokens < 30


def test_only_some_tags(tiny_model, tmp_path):
    llm = engine(tiny_model("qwen3_moe"))
    llm.start_moe_profile(tmp_path / "routes.safetensors", tags=["b", "c"])
    outputs = llm.generate(PROMPTS, [params(tags) for tags in TAGS], use_tqdm=False)
    llm.stop_moe_profile()
    read = read_routes(str(tmp_path / "routes.safetensors"))
    assert_equal(read, expected(outputs[2:], TAGS[2:]))


def test_requests_are_served_the_same(tiny_model, tmp_path):
    llm = engine(tiny_model("qwen3_moe"))
    plain = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
    before = llm.generate(PROMPTS, plain, use_tqdm=False)
    llm.start_moe_profile(tmp_path / "routes.safetensors")
    while_recorded = llm.generate(PROMPTS, plain, use_tqdm=False)
    assert [o.outputs for o in before] == [o.outputs for o in while_recorded]


def test_refusals(tiny_model, tmp_path):
    llm = engine(tiny_model("qwen3_moe"))
    with pytest.raises(RequestError, match="no routes are being recorded"):
        llm.stop_moe_profile()
    for path in (tmp_path / "absent" / "file", tmp_path):
        with pytest.raises(RequestError) as caught:
            llm.start_moe_profile(path)
        assert caught.value.param == "path"
    for tokens in (-1, 1 << 40, 2.5):
        with pytest.raises(RequestError, match="stream_tokens"):
            llm.start_moe_profile(tmp_path / "file", stream_tokens=tokens)
    with pytest.raises(RequestError, match="tags"):
        llm.start_moe_profile(tmp_path / "file", tags=[""])
    folder = tmp_path / "folder"
    folder.mkdir()
    llm.start_moe_profile(folder / "file")
    with pytest.raises(RequestError, match="recorded already"):
        llm.start_moe_profile(tmp_path / "file")
    folder.rmdir()
    with pytest.raises(RequestError, match="recording goes on"):
        llm.stop_moe_profile()
    folder.mkdir()
    assert llm.stop_moe_profile()["tokens"] == 0 and read_routes(str(folder / "file")).tokens == 0
    with pytest.raises(RequestError, match="no experts"):
        engine(tiny_model("llama")).start_moe_profile(tmp_path / "file")
