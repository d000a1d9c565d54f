"""What the families with latent attention read out of a config, beyond what parity can show."""

import math
from dataclasses import replace

import pytest

from moesaic.core.errors import ConfigError, MoesaicError
from moesaic.models.archs import deepseek_v3, glm4_moe_lite
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


def test_layers_for_speculation_are_not_needed():
    for rules, layer in ((deepseek_v3.RULES, 61), (glm4_moe_lite.RULES, 47)):
        book = RuleBook(rules)
        assert book.ignored(f"model.layers.{layer}.eh_proj.weight")
        assert not book.ignored(f"model.layers.{layer - 1}.eh_proj.weight")


DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
KIMI_K2 = {
    **DEEPSEEK_V3,
    "model_type": "kimi_k2",
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
DEEPSEEK_V2_LITE = {
    **{k: v for k, v in DEEPSEEK_V3.items() if k != "num_nextn_predict_layers"},
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": {**DEEPSEEK_V3["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}


LONGCAT_FLASH = {
    "architectures": ["LongcatFlashForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_method": "MLA",
    "expert_ffn_hidden_size": 2048,
    "ffn_hidden_size": 12288,
    "hidden_size": 6144,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "moe_topk": 12,
    "n_routed_experts": 512,
    "num_attention_heads": 64,
    "num_layers": 28,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "routed_scaling_factor": 6.0,
    "router_bias": False,
    "v_head_dim": 128,
    "vocab_size": 131072,
    "zero_expert_num": 256,
    "zero_expert_type": "identity",
}


@pytest.mark.parametrize(
    ("config", "total", "active", "cached"),
    [
        (DEEPSEEK_V3, 671.0, 37.6, 576),
        (KIMI_K2, 1026.4, 32.9, 576),
        (DEEPSEEK_V2_LITE, 15.7, 2.7, 576),
        (LONGCAT_FLASH, 560.7, 28.0, 576),
    ],
    ids=["DeepSeek-V3", "Kimi-K2", "DeepSeek-V2-Lite", "LongCat-Flash"],
)
def test_released_models_have_the_parameters_that_were_published(config, total, active, cached):
    _, found = spec_of(config)
    assert round(found.num_parameters / 1e9, 1) == total
    assert round(found.num_active_parameters / 1e9, 1) == active
    assert found.layers[0].attention.cached_dim == cached
