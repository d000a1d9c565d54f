"""Configs of models with recurrent layers: what is read of them, and what is refused."""

import pytest

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.models.load import spec_of
from moesaic.models.spec import (
    AttentionSpec,
    DenseSpec,
    GatedDeltaSpec,
    LayerSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MoESpec,
)

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
}
GRANITE = {**COMMON, "model_type": "granitemoehybrid", "mamba_n_heads": 4}
KIMI = {
    **{key: value for key, value in COMMON.items() if key != "max_position_embeddings"},
    "model_type": "kimi_linear",
    "num_key_value_heads": 4,
    "model_max_length": 512,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 48,
}
NEMOTRON = {
    **{key: value for key, value in COMMON.items() if key != "rms_norm_eps"},
    "model_type": "nemotron_h",
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
}
CONFIGS = {
    "granitemoehybrid": GRANITE,
    "jamba": {**COMMON, "model_type": "jamba"},
    "kimi_linear": KIMI,
    "minimax": {**COMMON, "model_type": "minimax"},
    "nemotron_h": NEMOTRON,
    "qwen3_next": {**COMMON, "model_type": "qwen3_next"},
}


def spec(family, **changes):
    return spec_of({**CONFIGS[family], **changes})[1]


def kinds(model):
    return [type(layer.attention or layer.ffn) for layer in model.layers]


def test_which_layer_is_what_by_default():
    assert kinds(spec("qwen3_next")) == [GatedDeltaSpec] * 3 + [AttentionSpec]
    assert kinds(spec("qwen3_next", full_attention_interval=2))[1] is AttentionSpec
    assert kinds(spec("granitemoehybrid")) == [Mamba2Spec] * 4
    assert kinds(spec("jamba", num_hidden_layers=5)) == [MambaSpec] * 4 + [AttentionSpec]
    assert kinds(spec("minimax"))[:2] == [AttentionSpec, LinearAttentionSpec]
    assert kinds(spec("nemotron_h")) == [Mamba2Spec, MoESpec, AttentionSpec, DenseSpec]


def test_older_spellings_of_kinds():
    old = spec("granitemoehybrid", layer_types=["mamba", "attention", "mamba", "mamba"])
    new = spec(
        "granitemoehybrid", layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    )
    assert old == new
    listed = ["linear_attention", "moe", "full_attention", "mlp", "moe"]
    assert spec("nemotron_h", hybrid_override_pattern="ME*-E") == spec("nemotron_h", layers_block_type=listed)
    part = {"full_attn_layers": [2], "kda_layers": [1, 3, 4], "head_dim": 16, "num_heads": 3}
    delta, attention = (layer.attention for layer in spec("kimi_linear", linear_attn_config=part).layers[:2])
    assert (delta.num_heads, delta.key_dim, delta.rank, delta.decay) == (3, 16, 16, "channel")
    assert attention.rope is None
    assert kinds(spec("kimi_linear", num_hidden_layers=6))[3:] == [GatedDeltaSpec, type(attention), GatedDeltaSpec]


def test_the_norm_of_lightning_attention_has_an_epsilon_of_its_own():
    layer = spec("minimax").layers[1].attention
    assert layer.norm_eps == 1e-6 and layer.decays[0] < layer.decays[-1] < 1
    assert spec("minimax").layers[3].attention.decays[0] > layer.decays[0]


def test_limits_of_steps_may_be_infinite_as_transformers_writes_it():
    written = [0.1, {"__float__": "Infinity"}]
    assert spec("granitemoehybrid", time_step_limit=written).layers[0].attention.step_limits == (0.1, float("inf"))
    assert spec("nemotron_h").layers[0].attention.step_limits == (0.001, float("inf"))


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("granitemoehybrid", {"mamba_d_head": 24}, "do not make"),
        ("granitemoehybrid", {"time_step_limit": ["a", 1]}, "must be two numbers"),
        ("granitemoehybrid", {"time_step_limit": [1.0]}, "must be two numbers"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "must be"),
        ("granitemoehybrid", {"layer_types": ["mamba", "conv", "mamba", "mamba"]}, "conv"),
        ("granitemoehybrid", {"mamba_n_groups": 3}, "do not make 3 equal groups"),
        ("jamba", {"expert_layer_offset": 2}, "must be less than expert_layer_period"),
        ("jamba", {"hidden_act": "gelu"}, "must be silu"),
        ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope"),
        ("kimi_linear", {"linear_attn_config": {"window": 3}}, "linear_attn_config.window"),
        ("minimax", {"rotary_dim": 8}, "rotary_dim"),
        ("nemotron_h", {"moe_latent_size": 32, "mlp_bias": True}, "moe_latent_size"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "X are no kinds"),
        ("nemotron_h", {"attention_bias": True}, "attention_bias"),
        ("qwen3_next", {"attn_output_gate": False}, "attn_output_gate"),
        ("qwen3_next", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3_next", {"linear_num_key_heads": 5}, "evenly"),
        ("qwen3_next", {"decoder_sparse_step": 0}, "at least 1"),
    ],
)
def test_what_is_refused(family, changes, message):
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        spec(family, **changes)


def test_a_layer_does_something():
    dense = DenseSpec(intermediate_size=8)
    with pytest.raises(ConfigError, match="mixes tokens, or is a feed-forward"):
        LayerSpec(attention=None, ffn=None)
    with pytest.raises(ConfigError, match="norms are of both"):
        LayerSpec(attention=None, ffn=dense, norms="parallel")
