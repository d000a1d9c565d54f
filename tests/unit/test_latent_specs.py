"""What the families with latent attention read out of a config, beyond what parity can show."""

import math
from dataclasses import replace

import pytest

from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.models.archs import deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa
from moesaic.models.load import spec_of
from moesaic.weights.rules import RuleBook

BASE = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7}


LONGCAT = {"ffn_hidden_size": 96, "expert_ffn_hidden_size": 48, "moe_topk": 3, "head_dim": 8}


def spec(model_type, **config):
    base = {**BASE, **LONGCAT} if model_type == "longcat_flash" else {**BASE, "n_shared_experts": 1}
    return spec_of({**base, "model_type": model_type, **config})[1]


def test_only_mscale_all_dim_scales_scores():
    plain = 32**-0.5
    for rope, factor in (
        ({}, 1.0),
        (YARN, 1.0),
        ({**YARN, "mscale_all_dim": 0}, 1.0),
        ({**YARN, "mscale_all_dim": 0.9}, (0.09 * math.log(4.0) + 1) ** 2),
    ):
        attention = spec("deepseek_v3", rope_scaling=rope).layers[0].attention
        assert attention.scale == pytest.approx(plain * factor)


def test_a_temperature_needs_its_key():
    rope = {**YARN, "llama_4_scaling_beta": 0.3, "partial_rotary_factor": 0.25}
    found = spec("mistral4", rope_parameters=rope).layers[0].attention.temperature
    assert (found.scale, found.period) == (0.3, 32)
    assert spec("mistral4").layers[0].attention.temperature is None


@pytest.mark.parametrize(
    ("model_type", "change", "says"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = true is not supported"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported; only 1 is"),
        ("deepseek_v3", {"num_key_value_heads": 4}, "num_key_value_heads = 4 is not supported; only 8"),
        ("deepseek_v3", {"qk_head_dim": 24}, "qk_head_dim = 24 is not supported; only 32"),
        ("deepseek_v3", {"kv_lora_rank": 0}, "latent_dim must be at least 1"),
        ("deepseek_v3", {"q_lora_rank": 0}, "query_rank must be at least 1"),
        ("deepseek_v3", {"n_group": 3}, "8 experts do not make 3 equal groups"),
        ("mistral4", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "8 of a head's 32 numbers rotate"),
        ("mistral4", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "original_max_position_embeddings is missing"),
        ("axk1", {"moe_layer_freq": 0}, "moe_layer_freq = 0: must be at least 1"),
        ("longcat_flash", {"mla_scale_q_lora": False}, "mla_scale_q_lora = false is not supported"),
        ("longcat_flash", {"zero_expert_type": "zero"}, "zero_expert_type"),
        ("longcat_flash", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("longcat_flash", {"head_dim": 64}, "head_dim = 64 is not supported; only 8 is"),
        ("longcat_flash", {"num_layers": 0}, "num_layers = 0: must be at least 1"),
        ("deepseek_v32", {"q_lora_rank": None}, "an indexer makes its queries from attention's normed projection"),
        ("deepseek_v32", {"index_head_dim": 6}, "8 numbers rotate, but an indexer's head has 6"),
        ("deepseek_v32", {"index_topk": 0}, "top_k must be at least 1"),
        ("deepseek_v32", {"rope_interleave": False}, "rope_interleave = false is not supported"),
        ("deepseek_v32", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("glm_moe_dsa", {"indexer_types": ["shared"] + ["full"] * 3}, "the first layer has none before it"),
        ("glm_moe_dsa", {"index_topk_pattern": "FFSX"}, "kind of layer in indexer_types 'X'"),
        ("glm_moe_dsa", {"index_topk_pattern": "FFS"}, "kind of layer in indexer_types 'missing'"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse"]}, "has 2 entries for 4 layers"),
    ],
)
def test_what_is_not_computed_is_refused(model_type, change, says):
    spec(model_type)
    with pytest.raises(MoesaicError, match=says):
        spec(model_type, **change)


def test_a_shortcut_needs_a_layer_to_lead_to():
    pair = spec("longcat_flash").layers[:2]
    assert pair[0].shortcut is pair[0].moe and pair[1].moe is None
    with pytest.raises(ConfigError, match="no layer follows"):
        replace(spec("longcat_flash"), layers=pair[:1])
    with pytest.raises(ConfigError, match="as its feed-forward or on a shortcut"):
        replace(pair[0], ffn=pair[0].shortcut)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "FFFF"),
        ({"index_topk_freq": 2}, "FFSF"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, "FSFS"),
        ({"index_topk_pattern": "FSSF"}, "FSSF"),
        ({"indexer_types": ["full", "shared", "shared", "full"], "index_topk_freq": 2}, "FSSF"),
    ],
)
def test_which_layers_take_the_choice_of_another(keys, expected):
    sources = [layer.attention.indexer.source for layer in spec("glm_moe_dsa", **keys).layers]
    assert "".join({"own": "F", "last": "S"}[source] for source in sources) == expected


def test_layers_for_speculation_are_not_needed():
    for rules, layer in (
        (deepseek_v3.RULES, 61),
        (deepseek_v32.RULES, 61),
        (glm4_moe_lite.RULES, 47),
        (glm_moe_dsa.RULES, 78),
    ):
        book = RuleBook(rules)
        assert book.ignored(f"model.layers.{layer}.eh_proj.weight")
        assert not book.ignored(f"model.layers.{layer - 1}.eh_proj.weight")
