"""Tiny random checkpoints of every supported family, made on the spot with transformers and saved as it saves them.

Weights are drawn wider than transformers draws them, norms included, so that routing, attention and every norm
matter: with the usual 0.02 a model hardly depends on its input, and a parity test would pass whatever is computed.
"""

from pathlib import Path
from typing import Any

import torch

WEIGHT_STD = 0.15
STORED_LESS_ONE = ("gemma2",)  # families whose norms' weights are stored as their difference from 1
CORRECTIONS = ("e_score_correction_bias",)  # of a router's choice; buffers, which transformers sets to zero
FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "granitemoe", "llama")  # the first five, tried in every way
MORE_FAMILIES = (
    *("cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "gemma2", "glm4_moe", "granitemoeshared"),
    *("gpt_oss", "hunyuan_v1_moe", "minimax_m2", "mistral", "opt", "qwen2_moe", "qwen3"),
)

ABSENT = object()  # a key of _COMMON that a family's config does not have
_COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 4},
    "granitemoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "intermediate_size": ABSENT, "num_key_value_heads": ABSENT},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 32, "sliding_window": 6},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
    },
    "granitemoeshared": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "shared_intermediate_size": 80,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "glm4_moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 48,
        "use_qk_norm": True,
        "routed_scaling_factor": 1.5,
    },
    "dots1": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
        "sliding_window": 6,
        "max_window_layers": 2,
        "routed_scaling_factor": 0.7,
    },
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 3,
        "moe_intermediate_size": 48,
    },
    "exaone_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "flex_olmo": {"num_experts": 8, "num_experts_per_tok": 3},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 3, "head_dim": 16},
    "minimax_m2": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "cohere2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "head_dim": 32,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "num_shared_experts": 2,
        "expert_selection_fn": "sigmoid",
    },
}


def tiny_config(family: str, *, tie: bool = False, **overrides: Any) -> Any:
    """transformers' config of a tiny model; `overrides` are keys of its config class."""
    from transformers import AutoConfig

    values = {**_COMMON, **_OF_FAMILY[family], "tie_word_embeddings": tie, **overrides}
    return AutoConfig.for_model(family, **{key: value for key, value in values.items() if value is not ABSENT})


def tiny_reference(family: str, *, seed: int = 0, tie: bool = False, **overrides: Any) -> Any:
    """transformers' own random model in fp32, computing as plainly as it can (eager attention and experts)."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, tie=tie, **overrides)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model = model.float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name and not name.endswith("bias")
            around = 1.0 if is_norm and family not in STORED_LESS_ONE else 0.0
            parameter.normal_(around, 0.3 if is_norm else WEIGHT_STD, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(CORRECTIONS):
                buffer.normal_(0.0, WEIGHT_STD, generator=generator)
    return model


def make_tiny(
    family: str,
    path: str | Path,
    *,
    seed: int = 0,
    vocab_size: int = 128,
    tie: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Save a tiny random checkpoint without tokenizer into folder `path`, which is made.

    Args:
        family: one of FAMILIES.
        max_shard_size: small values give several shards.
        overrides: keys of transformers' config class, such as num_attention_heads=8.

    Returns:
        The folder.
    """
    model = tiny_reference(family, seed=seed, tie=tie, vocab_size=vocab_size, **overrides)
    model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    return Path(path)
