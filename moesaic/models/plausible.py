"""Whether any model could be so large as a config says. Torch-free."""

from collections.abc import Mapping
from typing import Any

MOST_LAYERS, MOST_EXPERTS, MOST_TOGETHER = 4096, 65_536, 1_000_000  # a config that states more is damaged
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "experts_num", "n_experts")


def too_large(layers: int, experts: int) -> str:
    """Why a model of so many layers and experts is none; "" where it may be one."""
    if layers > MOST_LAYERS or experts > MOST_EXPERTS or layers * experts > MOST_TOGETHER:
        return f"it states {layers} layers and {experts} experts, which is more than any model has"
    return ""


def config_too_large(config: Mapping[str, Any]) -> str:
    """The same of a config, by the usual keys of it or of an object within."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]

    def most(keys: tuple[str, ...]) -> int:
        values = [part.get(key) for part in parts for key in keys]
        return max((value for value in values if isinstance(value, int)), default=1)

    return too_large(most(LAYERS), most(EXPERTS))
