"""Attention with chunks, temperatures, gates: grouped-query attention with more to it."""

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
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
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4_text one expert, dense layers": (
        "llama4_text",
        {"num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "use_qk_norm": False, "attention_bias": True},
    ),
    "llama4_text no temperature": ("llama4_text", {"attn_temperature_tuning": False, "attention_chunk_size": 16}),
}
