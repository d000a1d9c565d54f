"""Dense models."""

from typing import Any

from tests.families.common import ABSENT

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "ministral": {
        "head_dim": 32,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "intermediate_size": ABSENT, "num_key_value_heads": ABSENT},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2 other layers slide": (
        "gemma2",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma2 no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "mistral no window": ("mistral", {"sliding_window": None}),
    "opt gelu, no biases": ("opt", {"activation_function": "gelu", "enable_bias": False}),
    "qwen3 window": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
}
STORED_LESS_ONE = ("gemma2",)
