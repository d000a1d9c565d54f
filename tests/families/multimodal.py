"""Language models within models that see or hear; text alone is served."""

from typing import Any

from tests.families import gated, hybrid, recurrent

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 1}
_ARIA = {
    "moe_num_experts": 8,
    "moe_topk": 3,
    "moe_num_shared_experts": 2,
    "head_dim": 32,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma4": {**hybrid.CONFIGS["gemma4_text"], "pad_token_id": 1},
    "llama4": gated.CONFIGS["llama4_text"],
    "qwen3_5_moe": recurrent.CONFIGS["qwen3_5_moe_text"],
    "aria": _ARIA,
    "aria_text": _ARIA,  # by itself
    "ernie4_5_vl_moe": {
        "moe_num_experts": 8,
        "moe_k": 3,
        "moe_intermediate_size": [48, 32],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]},
    },
    "glm4v_moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "routed_scaling_factor": 1.5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 3, 3],
        },
    },
    "qwen3_vl_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
    },
    "qwen3_omni_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
    },
    "step3p7": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "share_expert_dim": 40,
        "head_dim": 32,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_sliding_attention_heads": 6,
        "query_pre_attn_scalar": 16,
        "swiglu_limits": [0, 0.2, None],
        "swiglu_limits_shared": [0.3, 0, 0.1],
        "moe_router_scaling_factor": 1.5,
        "rope_parameters": gated.ROPES,
        "pad_token_id": 1,
    },
}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma4": {"vision_config": {**VISION, "head_dim": 16, "num_key_value_heads": 2}},
    "llama4": {"vision_config": VISION},
    "qwen3_5_moe": {"vision_config": {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2}},
    "aria": {"vision_config": VISION},
    "ernie4_5_vl_moe": {"vision_config": TOWER},
    "glm4v_moe": {"vision_config": {**TOWER, "out_hidden_size": 64}},
    "qwen3_vl_moe": {"vision_config": {**TOWER, "out_hidden_size": 64, "deepstack_visual_indexes": [0]}},
    "qwen3_omni_moe": {
        "part": "thinker",
        "vision_config": {**TOWER, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "output_dim": 64,
            "num_mel_bins": 16,
            "downsample_hidden_size": 8,
        },
    },
    "step3p7": {"vision_config": {"width": 32, "layers": 1, "heads": 2}},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "aria biases": ("aria", {"attention_bias": True, "mlp_bias": True}),
    "glm4v_moe no biases": ("glm4v_moe", {"attention_bias": False, "first_k_dense_replace": 2}),
    "qwen3_omni_moe not renormalised": ("qwen3_omni_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    "qwen3_vl_moe dense layers": ("qwen3_vl_moe", {"mlp_only_layers": [1], "attention_bias": True}),
    "step3p7 no limits": ("step3p7", {"swiglu_limits": None, "swiglu_limits_shared": None, "attention_bias": True}),
}
STORED_LESS_ONE = ("step3p7",)
