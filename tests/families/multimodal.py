"""Language models within models that see or hear; text alone is served."""

from typing import Any

from tests.families import gated, recurrent

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama4": gated.CONFIGS["llama4_text"],
    "qwen3_5_moe": recurrent.CONFIGS["qwen3_5_moe_text"],
}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "llama4": {"vision_config": VISION},
    "qwen3_5_moe": {"vision_config": {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2}},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {}
