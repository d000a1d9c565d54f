"""What the engine must know of a model that transformers computes, read from its config before weights are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.models.config_reader import METADATA, read_config
from moesaic.models.hf_backend.allowed import Allowed

POSITIONS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions")
BASE_KEYS = {"per_layer_config", "tie_word_embeddings"}  # what every config may have, and no class has a field for
TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    "num_experts_per_topk",
)


@dataclass(frozen=True)
class ForeignSpec:
    """The facts that a native model's spec has too, under the same names.

    Attributes:
        entry: of the allow-list.
        num_active_parameters: less those of experts that a token is not routed to, where they can be told apart.
    """

    entry: Allowed
    vocab_size: int
    max_position_embeddings: int
    num_parameters: int
    num_active_parameters: int

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt must be computed in one step, and is never found in the prefix cache."""
        return self.entry.mode == "request"


def read_facts(path: str, entry: Allowed) -> ForeignSpec:
    """The facts of the checkpoint in folder `path`. Raises ConfigError, or UnsupportedError where it is quantised."""
    import torch

    from moesaic.models.hf_backend.experts import is_experts

    _refuse_quantised(read_config(path), path)
    config = load_config(path, entry)
    text = config.get_text_config(decoder=True)
    try:
        with torch.device("meta"):
            model = class_of(entry, path)._from_config(config)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{os.path.join(path, 'config.json')}: transformers builds no model of it: {type(error).__name__}: {error}"
        ) from error
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for module in model.modules():
        if is_experts(module):
            top_k = next((int(getattr(text, name)) for name in TOP_K if isinstance(_value(text, name), int)), None)
            count = sum(p.numel() for p in module.parameters())
            idle += 0 if top_k is None else count - count * min(top_k, module.num_experts) // module.num_experts
    return ForeignSpec(entry, int(text.vocab_size), _positions(text, path), total, total - idle)


def _refuse_quantised(raw: dict[str, Any], path: str) -> None:
    """Raise UnsupportedError for a checkpoint that is quantised already."""
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, dict) else {}):
        quantization = part.get("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
            raise UnsupportedError(
                f"{path} is quantised (method {method}), which is not read for models that transformers' own code "
                "computes: use an unquantised checkpoint, or another --model-impl where it is supported natively"
            )


def unknown_keys(cls: Any, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys of a config, and of the configs in it, that transformers' class of it has no field for, and does not set:
    its models read hardly any of them."""
    parts = {key: part for key, part in cls.sub_configs.items() if isinstance(values.get(key), dict)}
    known = METADATA | BASE_KEYS | cls.__dataclass_fields__.keys() | cls.attribute_map.keys() | cls().to_dict().keys()
    found = [prefix + key for key in values if key not in known and key not in parts]
    for key, part in parts.items():
        if part.__name__ != "AutoConfig":
            found += unknown_keys(part, values[key], f"{prefix}{key}.")
    return found


def load_config(path: str, entry: Allowed) -> Any:
    """transformers' config of the folder. Raises ConfigError with transformers' reason."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=bool(entry.remote))
        return getattr(config, entry.part[1]) if entry.part else config
    except Exception as error:  # strict config classes raise many kinds; the message is what the user needs
        raise ConfigError(f"{os.path.join(path, 'config.json')}: transformers does not read it: {error}") from error


def class_of(entry: Allowed, path: str) -> Any:
    """The class that computes the model: transformers' own, or the folder's where it may run code of its own."""
    import transformers

    if not entry.remote:
        name = entry.part[0] if entry.part else entry.architecture
        found = getattr(transformers, name, None)
        if found is None:
            raise ConfigError(f"transformers {transformers.__version__} has no {name}: update it")
        return found
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(entry.remote, path, local_files_only=True)


def _value(config: Any, name: str) -> Any:
    """An attribute of a config, None where it has none; one that differs from layer to layer raises a RuntimeError."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def _positions(config: Any, path: str) -> int:
    for name in POSITIONS:
        value = _value(config, name)
        if isinstance(value, int) and value > 0:
            return value
    raise ConfigError(f"{os.path.join(path, 'config.json')} has none of {', '.join(POSITIONS)}")
