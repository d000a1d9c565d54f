"""Language models within models that see or hear; text alone is served."""

from typing import Any

from tests.families import gated, hybrid, recurrent

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma4": {**hybrid.CONFIGS["gemma4_text"], "pad_token_id": 1},
    "llama4": gated.CONFIGS["llama4_text"],
    "qwen3_5_moe": recurrent.CONFIGS["qwen3_5_moe_text"],
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
    "step3p7": {"vision_config": {"width": 32, "layers": 1, "heads": 2}},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "step3p7 no limits": ("step3p7", {"swiglu_limits": None, "swiglu_limits_shared": None, "attention_bias": True}),
}
STORED_LESS_ONE = ("step3p7",)
