"""Experts behind attention that differs from layer to layer."""

from typing import Any

from tests.families.common import ABSENT

SHORT = {"num_experts_per_tok": 3, "moe_intermediate_size": 48, "head_dim": 32, "sliding_window": 6}
BY_KIND = {
    "full_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75},
}
BASES = {kind: {**r, "partial_rotary_factor": 1.0} for kind, r in BY_KIND.items()}
HYBRID = ["full_attention", "sliding_attention", "sliding_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "beam": {
        **SHORT,
        "num_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "layer_types": HYBRID,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "final_logit_softcapping": 3.0,
        "rms_norm_eps": 0.1,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": None},
    },
    "flint": {**SHORT, "num_experts": 8, "shared_expert_intermediate_size": 40, "num_hidden_layers": 4},
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 3,
        "moe_intermediate_size": 48,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_hidden_layers": 4,
        "sliding_window": 6,
        "final_logit_softcapping": 3.0,
    },
    "granitemoe_swa": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "shared_intermediate_size": 80,
        "sliding_window": 6,
        "layer_rope_theta": [100.0, 0, 10000.0],
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "hy_v3": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "num_shared_experts": 2,
    },
    "jetmoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "num_key_value_heads": 2,
        "kv_channels": 32,
        "num_attention_heads": ABSENT,
        "rms_norm_eps": 0.01,
    },
    "kolibri1": {
        **SHORT,
        "num_experts": 8,
        "shared_expert_intermediate_size": 40,
        "layer_types": HYBRID,
        "intermediate_size": ABSENT,
    },
    "mellum": {**SHORT, "num_experts": 8, "layer_types": HYBRID, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    "mimo_v2_flash": {
        **SHORT,
        "n_routed_experts": 8,
        "v_head_dim": 24,
        "layer_types": HYBRID,
        "rope_parameters": BY_KIND,
        "routed_scaling_factor": 1.5,
    },
    "solar_open": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.5,
        "intermediate_size": ABSENT,
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "beam all layers rotate": (
        "beam",
        {"rope_parameters": BASES, "attention_bias": True, "final_logit_softcapping": None, "norm_topk_prob": False},
    ),
    "flint dense layers": ("flint", {"mlp_only_layers": [], "decoder_sparse_step": 2, "norm_topk_prob": False}),
    "flint biases": ("flint", {"attention_bias": True}),
    "gemma4_text dense": ("gemma4_text", {"enable_moe_block": False, "final_logit_softcapping": None}),
    "gemma4_text values of their own": ("gemma4_text", {"attention_k_eq_v": False, "attention_bias": True}),
    "granitemoe_swa one base": ("granitemoe_swa", {"layer_rope_theta": None, "shared_intermediate_size": 0}),
    "hy_v3 biases": ("hy_v3", {"attention_bias": True, "mlp_bias": True}),
    "kolibri1 renormalised": ("kolibri1", {"norm_topk_prob": True}),
    "mellum bases": ("mellum", {"rope_parameters": BASES, "norm_topk_prob": False, "attention_bias": True}),
    "mimo_v2_flash bases by default": ("mimo_v2_flash", {"rope_parameters": None, "attention_bias": True}),
    "mimo_v2_flash values as they are": ("mimo_v2_flash", {"attention_value_scale": None}),
}
