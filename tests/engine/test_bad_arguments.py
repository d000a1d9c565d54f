"""Arguments and folders that cannot be used: one clear error each, of a kind of ours."""

import json
from pathlib import Path

import pytest

from moesaic import LLM
from moesaic.core.errors import CheckpointError, ConfigError, MoesaicError, UnsupportedError
from moesaic.engine.args import EngineArgs
from moesaic.engine.resolve import find_model, parse_size, resolve


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model": "/does/not/exist"}, "neither a folder here nor a Hugging Face id"),
        ({"model": "nobody/no-such-model-anywhere"}, "hub did not give it"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"load_format": "tar"}, "load_format must be one of"),
        ({"max_model_len": 10**6}, "longer than the model's 2048 positions"),
        ({"max_model_len": 0}, "max_model_len must be a whole number of at least 1"),
        ({"max_num_seqs": -1}, "max_num_seqs"),
        ({"max_num_batched_tokens": 1.5}, "max_num_batched_tokens"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\]"),
        ({"kv_cache_memory": "lots"}, "kv_cache_memory must be a size such as 4GiB"),
        ({"state_checkpoint_interval": 100}, "state_checkpoint_interval must be a multiple of block_size, 16, got 100"),
        ({"state_checkpoint_interval": 0}, "state_checkpoint_interval must be a whole number of at least 1"),
        ({"tensor_parallel_size": 2}, "only 1 works"),
        ({"device": "cuda"}, "no GPU"),
        ({"seed": "x"}, "seed"),
        ({"quantization": "w4"}, "quantization must be one of auto, none, w8a16, w4a16, w8a8"),
        ({"quantization_group_size": 48}, "quantization_group_size must be 32, 64, 128, or 0"),
        ({"quantization_config": "lm_head"}, "cannot read .*say pattern=format"),
        ({"quantization_config": '{"lm_head": 8}'}, "cannot read"),
        ({"moe_block_size": 48}, "moe_block_size must be a power of 2 from 1 to 1024, got 48"),
        ({"moe_block_size": 2048}, "moe_block_size must be a power of 2"),
        ({"moe_block_size": 0}, "moe_block_size must be a power of 2"),
    ],
    ids=str,
)
def test_a_bad_argument_is_named(kwargs, message):
    import torch

    if kwargs.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=message):
        resolve(EngineArgs(**kwargs))


def test_an_earlier_download_is_used_with_a_warning(monkeypatch, tmp_path):
    """The hub is out of reach (the tests run offline): a cached copy serves, but not silently."""
    import huggingface_hub

    said = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    monkeypatch.setattr("moesaic.engine.resolve.logger.warning", lambda form, *args: said.append(form % args))
    assert find_model("owner/name") == str(tmp_path)
    assert len(said) == 1 and "hub did not give it" in said[0] and "may be old or incomplete" in said[0]


def test_sizes():
    assert [parse_size(s) for s in ("4GiB", "500MB", "1.5G", "16", 7, None)] == [
        4 * 2**30, 500 * 10**6, 15 * 10**8, 16, 7, None,
    ]  # fmt: skip


def test_an_empty_folder(tmp_path):
    with pytest.raises(MoesaicError, match="empty"):
        LLM(str(tmp_path))


def test_config_json_that_is_not_json(tmp_path):
    (tmp_path / "config.json").write_text("{oops")
    with pytest.raises(MoesaicError, match="not JSON|JSON"):
        LLM(str(tmp_path))


def test_an_unknown_architecture_names_its_nearest(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MixtralForCausalML"]}))
    with pytest.raises(UnsupportedError, match="MixtralForCausalLM"):
        LLM(str(tmp_path))


def test_a_config_key_that_is_not_implemented(tiny_model, tmp_path):
    config = json.loads((Path(tiny_model("mixtral")) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"residual_twist": 3}))
    with pytest.raises(UnsupportedError, match="residual_twist"):
        LLM(str(tmp_path))


def test_no_weights(tiny_model, tmp_path):
    (tmp_path / "config.json").write_text((Path(tiny_model("mixtral")) / "config.json").read_text())
    with pytest.raises(CheckpointError):
        LLM(str(tmp_path), skip_tokenizer_init=True)


def test_no_tokenizer(tiny_model):
    with pytest.raises(ConfigError, match="skip_tokenizer_init"):
        LLM(tiny_model("mixtral"), threads=1)


def test_kv_memory_too_small_for_one_request(tiny_model):
    with pytest.raises(ConfigError, match="of 512 tokens: it needs .* KiB, and --kv-cache-memory 48.8 KiB") as caught:
        LLM(tiny_model("llama"), skip_tokenizer_init=True, kv_cache_memory="50KB", max_model_len=512)
    assert "--max-model-len to at most" in str(caught.value)


def test_a_length_that_was_not_asked_for_is_shortened_to_fit(tiny_model):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, kv_cache_memory="100KB", threads=1)
    info = llm.llm_engine.engine.info
    assert info.max_model_len < 512 and info.max_model_len == info.num_blocks * info.block_size


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(tiny_model):
    from moesaic.core.errors import RequestError
    from tests.unit.requests import make_request

    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, kv_cache_memory="100KB", threads=1)
    engine = llm.llm_engine.engine
    capacity = engine.info.num_blocks * engine.info.block_size
    with pytest.raises(RequestError, match=f"need {capacity + 8} tokens of KV cache, which holds {capacity} in all"):
        engine.add(make_request([1] * capacity, max_tokens=8))
