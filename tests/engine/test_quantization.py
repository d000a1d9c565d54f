"""Engines with quantised weights: flags reach the kernels, and what was packed once is read the next time."""

import pytest

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.weights.packing import packed_matrices

pytestmark = pytest.mark.usefixtures("cpu_library")

GREEDY = SamplingParams(temperature=0, max_tokens=24)
QUESTIONS = ["What is 47 + 38?", "What is top-k routing?"]


def engine(**arguments):
    return LLM("moe-model", threads=2, kv_cache_memory="16MiB", **arguments)


def answers(llm):
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [output.text for output in llm.chat(conversations, GREEDY, use_tqdm=False)]


def formats(llm):
    matrices, _ = packed_matrices(dict(llm.llm_engine.engine.executor.model.named_views()))
    return {name: str(matrix.format) for name, matrix in matrices}


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8"])
def test_the_embedded_model_still_adds(scheme):
    assert answers(engine(quantization=scheme))[0] == "85"


def test_exceptions_reach_their_weights():
    config = "layers.0.mlp.experts.0-1=w8a16:32,layers.2.attention=none"
    found = formats(engine(quantization="w4a16", quantization_group_size=64, quantization_config=config))
    assert found["embed.weight"] == found["layers.2.attention.q.weight"] == "bf16"
    assert found["embed.weight.twin"] == "w8 in groups of 64"  # the tied head
    assert found["layers.0.mlp.experts.1.gate.weight"] == "w8 in groups of 32"
    assert found["layers.0.mlp.experts.2.gate.weight"] == "w4 in groups of 64 with offsets"


def test_a_second_start_reads_packed_weights_and_says_the_same(tmp_path, caplog):
    arguments = {"quantization": "w4a16", "pack_cache": str(tmp_path / "packed")}
    with caplog.at_level("INFO"):
        first = answers(engine(**arguments))
        assert "packed weights for the next start" in caplog.text
        caplog.clear()
        assert answers(engine(**arguments)) == first
    assert "of packed weights from" in caplog.text and "made anew" not in caplog.text
    assert len(list((tmp_path / "packed").iterdir())) == 1


def test_small_models_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))
    engine(quantization="w4a16")
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_is_refused():
    with pytest.raises(UnsupportedError, match="quantised weights need the C\\+\\+ kernels"):
        engine(quantization="w8a16", moe_backend="reference")
    with pytest.raises(ConfigError, match="the two are one matrix"):
        engine(quantization="w4a16", quantization_config="layers.*.attention.k=w8a16")
    with pytest.raises(ConfigError, match="'layer.0' fits no weight of this model"):
        engine(quantization_config="layer.0=w4a16")
