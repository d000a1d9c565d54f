"""Attention with chunks, temperatures, gates: grouped-query attention with more to it."""

from typing import Any

from tests.families.common import ABSENT, COMMON

ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "afmoe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "sliding_window": 6,
        "global_attn_every_n_layers": 2,
        "route_scale": 1.7,
        "mup_enabled": True,
    },
    "laguna": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 40,
        "head_dim": 32,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [4, 2, 6],
        "rope_parameters": ROPES,
        "moe_routed_scaling_factor": 1.5,
        "moe_router_logit_softcapping": 2.0,
    },
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.7, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3},
        **dict.fromkeys(COMMON.keys() - {"vocab_size"}, ABSENT),
    },
    "phimoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.2,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "llama4_text": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size_mlp": 80,
        "head_dim": 32,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 6,
        "floor_scale": 4,
        "attn_scale": 0.5,
    },
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.9, 2.0, 3.0, 4.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "short_mscale": 1.2,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe plain embeddings, two dense layers": ("afmoe", {"mup_enabled": False, "num_dense_layers": 2}),
    "laguna a gate for each element, no cap": (
        "laguna",
        {"gating": "per-element", "moe_router_logit_softcapping": 0.0, "attention_bias": True},
    ),
    "phimoe little jitter, no biases": (
        "phimoe",
        {"router_jitter_noise": 0.01, "attention_bias": False, "lm_head_bias": False, "sliding_window": 6},
    ),
    "dbrx not renormalised": (
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 0.7, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 48,
                "moe_num_experts": 8,
                "moe_top_k": 3,
                "moe_normalize_expert_weights": None,
            },
        },
    ),
    "phimoe longrope": ("phimoe", {"rope_parameters": LONGROPE}),
    "llama4_text one expert, dense layers": (
        "llama4_text",
        {"num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "use_qk_norm": False, "attention_bias": True},
    ),
    "llama4_text no temperature": ("llama4_text", {"attn_temperature_tuning": False, "attention_chunk_size": 16}),
}
