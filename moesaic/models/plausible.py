"""Whether any model could be so large as a config says. Torch-free."""

from collections.abc import Mapping
from typing import Any

from moesaic.models.aliases import numbers

COUNTED = "the names of its tensors count"
MOST_LAYERS, MOST_EXPERTS, MOST_TOGETHER = 4096, 65_536, 1_000_000  # a config that states more is damaged
MOST_HEADS = 65_536


def beyond_any_model(config: Mapping[str, Any] | None) -> str:
    """Why a model of so many layers, heads and experts as the config states is none; "" where it may be one."""
    heads = max(numbers(config, "num_attention_heads"), default=1)
    if heads > MOST_HEADS:
        return f"it states {heads} attention heads, which is more than any model has"
    layers = max(numbers(config, "num_hidden_layers"), default=1)
    experts = max(numbers(config, "num_experts"), default=1)
    return too_large(layers, experts, "it states")


def too_large(layers: int, experts: int, says: str) -> str:
    """The same of numbers of layers and experts, from wherever `says` tells."""
    if layers > MOST_LAYERS or experts > MOST_EXPERTS or layers * experts > MOST_TOGETHER:
        return f"{says} {layers} layers and {experts} experts, which is more than any model has"
    return ""
