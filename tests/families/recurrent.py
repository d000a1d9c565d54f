"""Layers that keep a state of fixed size for each sequence."""

from typing import Any

from tests.families.common import ABSENT

QWEN: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 40,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "shared_intermediate_size": 80,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 16,
        "mamba_chunk_size": 8,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "lfm2": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "block_multiple_of": 24,
        "block_ffn_dim_multiplier": 0.8,
    },
    "lfm2_moe": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "routed_scaling_factor": 1.5,
    },
    "qwen3_5_moe_text": {**QWEN, "intermediate_size": ABSENT},
    "qwen3_next": QWEN,
}
STORED_LESS_ONE = ("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "granitemoehybrid biases, limits, rope": (
        "granitemoehybrid",
        {
            "mamba_proj_bias": True,
            "attention_bias": True,
            "mamba_conv_bias": False,
            "time_step_limit": [0.6, 0.8],
            "position_embedding_type": "rope",
        },
    ),
    "granitemoehybrid no experts": ("granitemoehybrid", {"num_local_experts": 0, "mamba_n_groups": 1}),
    "lfm2 attention only": ("lfm2", {"layer_types": None}),
    "lfm2 size as it is": ("lfm2", {"block_auto_adjust_ff_dim": False}),
    "lfm2_moe biases": ("lfm2_moe", {"conv_bias": True}),
    "lfm2_moe convolutions only": ("lfm2_moe", {"layer_types": ["conv"] * 4}),
    "lfm2_moe no correction": ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False}),
    "lfm2_moe wide": ("lfm2_moe", {"conv_L_cache": 5}),
    "qwen3_next interval, biases": (
        "qwen3_next",
        {"layer_types": None, "attention_bias": True, "norm_topk_prob": False, "linear_conv_kernel_dim": 3},
    ),
    "qwen3_next dense layers": ("qwen3_next", {"mlp_only_layers": [1], "linear_num_value_heads": 2}),
}
