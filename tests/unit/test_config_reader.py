"""Every key of a config is read, ignored by name, or refused; bad folders and files get one clear error."""

import json

import pytest

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.models.config_reader import ConfigReader, eos_token_ids, read_config
from moesaic.models.load import spec_of

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
MIXTRAL = {**LLAMA, "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_key_value_heads": 2}


def reader(**values):
    return ConfigReader(values, "config.json")


def test_a_minimal_config_is_enough():
    spec = spec_of(LLAMA)[1]
    assert len(spec.layers) == 2
    assert spec.layers[0].attention.num_kv_heads == 4
    assert spec.layers[0].attention.rope.theta == 10000.0
    assert not spec.tied_embeddings


def test_absent_and_null_are_not_the_same():
    c = reader(a=None)
    assert c.read(int | None, "a", absent=3) is None
    assert c.read(int | None, "b", absent=3) == 3


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(int, "4", "int"), (int, True, "int"), (int, 4.5, "int"), (float, False, "float"), (bool, 1, "bool"),
     (int | None, "x", "int or null"), (list | None, 3, "list or null"), (int, None, "int")],
)  # fmt: skip
def test_wrong_types_name_key_value_and_expected(kind, value, expected):
    with pytest.raises(ConfigError) as e:
        reader(size=value).require(kind, "size")
    assert str(e.value) == f"config.json: size must be {expected}, got {json.dumps(value)}"


def test_whole_numbers_are_floats_too():
    value = reader(theta=10000).require(float, "theta")
    assert value == 10000.0 and isinstance(value, float)


def test_missing_key_and_its_aliases_are_named():
    with pytest.raises(ConfigError, match="num_experts or num_local_experts is missing"):
        reader().require(int, "num_experts", "num_local_experts")


def test_aliases_that_differ_are_refused():
    assert reader(a=1, b=1).require(int, "a", "b") == 1
    with pytest.raises(ConfigError, match="a and b name the same thing but differ"):
        reader(a=1, b=2).require(int, "a", "b")


def test_all_untouched_keys_are_refused_together():
    config = {**LLAMA, "num_attention_head": 8, "attention_sinks": True, "use_cache": True, "id2label": {"0": "x"}}
    with pytest.raises(UnsupportedError) as e:
        spec_of(config)
    message = str(e.value)
    assert "num_attention_head = 8 (nearest understood key: num_attention_heads)" in message
    assert "attention_sinks = true" in message
    assert "use_cache" not in message and "id2label" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported; only "silu" is'),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}}, "rope_scaling.odd = 1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "rope_parameters.factor must be float"),
        ({"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "same thing"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config (method hqq): HQQ is not read"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = true"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide num_attention_heads = 4"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0: must divide"),
        ({"num_attention_heads": 5}, "must divide hidden_size = 32"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: must be at least 1"),
        ({"num_hidden_layers": 0}, "no layers"),
        ({"vocab_size": -1}, "vocab_size must be at least 1"),
        ({"head_dim": 7}, "even head dimension"),
    ],
)
def test_refused_values(change, words):
    with pytest.raises(ConfigError) as e:
        spec_of({**LLAMA, **change})
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 5}, "each token goes to 5 experts"),
        ({"num_experts_per_tok": 0}, "each token goes to 0 experts"),
        ({"sliding_window": 0}, "sliding_window = 0: must be at least 1"),
        ({"num_local_experts": 0}, "num_experts must be at least 1"),
    ],
)
def test_refused_values_of_experts(change, words):
    with pytest.raises(ConfigError) as e:
        spec_of({**MIXTRAL, **change})
    assert words in str(e.value)


def test_null_quantization_is_none():
    spec_of({**LLAMA, "quantization_config": None})


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, CheckpointError, "holds no config.json"),
        ("{nope", ConfigError, "is not JSON"),
        ("[1]", ConfigError, "must hold a JSON object, not list"),
        ("", ConfigError, "is not JSON"),
        ('{"a": [{"%s": 1}]}' % ("x" * 9000), ConfigError, "a text of 9000 letters"),
        ('{"a": [["%s"]]}' % ("x" * 9000), ConfigError, "a text of 9000 letters"),
    ],
)
def test_bad_config_files(tmp_path, content, error, words):
    (tmp_path / "other.txt").write_text("x")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(error) as e:
        read_config(str(tmp_path))
    assert words in str(e.value) and str(tmp_path) in str(e.value)


def test_bad_folders(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="is empty"):
        read_config(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_config(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        read_config(str(tmp_path / "config.json"))


def test_eos_token_ids(tmp_path):
    path, generation = str(tmp_path), tmp_path / "generation_config.json"
    assert eos_token_ids(path, {}) == []
    assert eos_token_ids(path, {"text_config": {"eos_token_id": 5}}) == [5]
    assert eos_token_ids(path, {"eos_token_id": 2}) == [2]
    generation.write_text('{"eos_token_id": [3, 4]}')
    assert eos_token_ids(path, {"eos_token_id": 2}) == [3, 4]
    generation.write_text('{"eos_token_id": null}')
    assert eos_token_ids(path, {"eos_token_id": 2}) == [2]
    generation.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ConfigError, match="must be a token id or a list of them"):
        eos_token_ids(path, {})
