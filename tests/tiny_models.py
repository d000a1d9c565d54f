"""Tiny random checkpoints of every supported family, made on the spot with transformers and saved as it saves them.

Weights are drawn wider than transformers draws them, norms included, so that routing, attention and every norm
matter: with the usual 0.02 a model hardly depends on its input, and a parity test would pass whatever is computed.
"""

from pathlib import Path
from typing import Any

import torch

from tests.families import CONFIGS, FAMILIES, MORE_FAMILIES, MULTIMODAL, STORED_LESS_ONE
from tests.families.common import ABSENT, COMMON

__all__ = ["FAMILIES", "MORE_FAMILIES", "make_tiny", "tiny_config", "tiny_reference"]

WEIGHT_STD = 0.15
CORRECTIONS = (
    "e_score_correction_bias",
    "expert_bias",
)  # of a router's choice; buffers, which transformers sets to zero
SCALES = ("layer_scalar", "router.scale", "per_expert_scale")  # buffers and parameters, which it sets to one


def tiny_config(family: str, *, tie: bool = False, **overrides: Any) -> Any:
    """transformers' config of a tiny model; `overrides` are keys of its config class."""
    from transformers import AutoConfig

    values = {**COMMON, **CONFIGS[family], "tie_word_embeddings": tie, **overrides}
    values = {key: value for key, value in values.items() if value is not ABSENT}
    if family in MULTIMODAL:
        beside = dict(MULTIMODAL[family])
        part = beside.pop("part", None)
        around = {"text_config": values, "tie_word_embeddings": tie, **beside}
        # What speaks is left out: it is large, and computes nothing of the text.
        whole = around if part is None else {f"{part}_config": around, "enable_audio_output": False}
        return AutoConfig.for_model(family, **whole)
    return AutoConfig.for_model(family, **values)


def tiny_reference(family: str, *, seed: int = 0, tie: bool = False, **overrides: Any) -> Any:
    """transformers' own random model in fp32, computing as plainly as it can (eager attention and experts)."""
    config = tiny_config(family, tie=tie, **overrides)
    kind, part = tiny_class(config, family), MULTIMODAL.get(family, {}).get("part")
    model = kind._from_config(config, attn_implementation="eager", experts_implementation="eager")
    if part is not None:
        model.forward = getattr(model, part).forward
    return draw(model.float().eval(), seed, stored_less_one=family in STORED_LESS_ONE)


def tiny_class(config: Any, family: str) -> Any:
    """transformers' class of a tiny model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForTextToWaveform

    multimodal = AutoModelForTextToWaveform if "part" in MULTIMODAL.get(family, {}) else AutoModelForImageTextToText
    plain = family not in MULTIMODAL and type(config) in AutoModelForCausalLM._model_mapping
    return (AutoModelForCausalLM if plain else multimodal)._model_mapping[type(config)]


def draw(model: Any, seed: int = 0, stored_less_one: bool = False) -> Any:
    """Give a model its random weights, in place.

    Args:
        stored_less_one: norms' weights are stored as their difference from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name and not name.endswith("bias")
            scales = is_norm or name.endswith(SCALES)
            around = 1.0 if scales and not (is_norm and stored_less_one) else 0.0
            parameter.normal_(around, 0.3 if scales else WEIGHT_STD, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(CORRECTIONS):
                buffer.normal_(0.0, WEIGHT_STD, generator=generator)
            if name.endswith(SCALES):
                buffer.normal_(1.0, 0.3, generator=generator)
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
