"""Latent attention, with experts behind it."""

from typing import Any

from tests.families.common import ABSENT

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 48,
    "routed_scaling_factor": 1.7,
}
INDEX = {"index_topk": 6, "index_n_heads": 16, "index_head_dim": 24}  # so many heads that hardly a score is 0
CONFIGS: dict[str, dict[str, Any]] = {
    "axk1": {**LATENT, **EXPERTS, "n_group": 4, "topk_group": 2},
    "deepseek_v2": {
        **LATENT,
        **EXPERTS,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
    },
    "deepseek_v3": {
        **LATENT,
        **EXPERTS,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": YARN,
    },
    "deepseek_v32": {
        **LATENT,
        **EXPERTS,
        **INDEX,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": YARN,
    },
    "glm_moe_dsa": {
        **LATENT,
        **EXPERTS,
        **INDEX,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "indexer_types": ["full", "shared", "full", "shared"],
    },
    "glm4_moe_lite": {**LATENT, **EXPERTS, "n_group": 1, "topk_group": 1},
    "longcat_flash": {
        **LATENT,
        "intermediate_size": ABSENT,
        "num_hidden_layers": ABSENT,
        "num_layers": 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 48,
        "head_dim": 8,
        "n_routed_experts": 8,
        "zero_expert_num": 4,
        "moe_topk": 5,
    },
    "mistral4": {
        **LATENT,
        **EXPERTS,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3, "max_position_embeddings": 512},
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "axk1 kinds of layers": ("axk1", {"mlp_layer_types": ["sparse", "dense", "sparse"]}),
    "deepseek_v2 greedy, plain queries, biases": (
        "deepseek_v2",
        {"topk_method": "greedy", "q_lora_rank": None, "attention_bias": True, "mlp_bias": True},
    ),
    "deepseek_v2 yarn": ("deepseek_v2", {"rope_parameters": YARN}),
    "deepseek_v3 plain queries, halves": ("deepseek_v3", {"q_lora_rank": None, "rope_interleave": False}),
    "deepseek_v3 biases, not renormalised": ("deepseek_v3", {"attention_bias": True, "norm_topk_prob": False}),
    "deepseek_v3 wide latents": ("deepseek_v3", {"kv_lora_rank": 64, "qk_nope_head_dim": 64, "v_head_dim": 40}),
    "glm_moe_dsa own choices": ("glm_moe_dsa", {"indexer_types": ["full"] * 4, "index_topk": 9}),
    "glm4_moe_lite kinds of layers": ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}),
    "longcat_flash no zero experts": ("longcat_flash", {"zero_expert_num": 0, "moe_topk": 2}),
    "mistral4 dense layers": ("mistral4", {"first_k_dense_replace": 2, "norm_topk_prob": False}),
}
