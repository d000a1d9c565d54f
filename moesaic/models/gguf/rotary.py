"""Rotary positions of a GGUF file, as transformers 5 spells them in `rope_parameters`. Torch-free."""

import struct
from collections.abc import Mapping
from typing import Any

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.keys import KeyReader
from moesaic.weights.containers.gguf import GgufSource

THETA = 10000.0  # where the file names none
MOST_FACTORS = 4096
FACTORS = "rope_freqs.weight"  # what each pair's frequency is divided by
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"  # likewise, up to the original length and beyond


def rope_parameters(
    c: KeyReader, source: GgufSource, config: Mapping[str, Any], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """What `rope_parameters` of a config.json says.

    Args:
        c: of the metadata.
        config: as far as it is known: the sizes of heads, and the length.
        entry: of architectures.json.
    """
    theta = c.read(float, "rope.freq_base", absent=THETA)
    c.refuse_unless("rope.freq_base_swa", theta)
    parameters: dict[str, Any] = {"rope_theta": theta, **_scaling(c, source, config), **entry.get("rope", {})}
    if not entry.get("latent"):
        size = config["head_dim"]
        rotating = c.read(int, "rope.dimension_count", absent=size)
        if entry.get("partial_rotary"):
            parameters["partial_rotary_factor"] = rotating / size
        elif rotating != size:
            raise c.error("rope.dimension_count", f"is a part of a head's {size} numbers, which is not read")
    return parameters


def _scaling(c: KeyReader, source: GgufSource, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = c.read(str, "rope.scaling.type", absent="none")
    factor = c.read(float, "rope.scaling.factor", "rope.scale_linear", absent=1.0)
    original = c.read(int, "rope.scaling.original_context_length", absent=0)
    attention = c.read(float | None, "rope.scaling.attn_factor", absent=None)
    c.ignore("rope.scaling.finetuned")
    length = config.get("max_position_embeddings", 0)
    if SHORT in source.tensors:
        given = {} if attention is None else {"attention_factor": attention}
        return {
            "rope_type": "longrope",
            "short_factor": _numbers(source, SHORT),
            "long_factor": _numbers(source, LONG),
            "original_max_position_embeddings": original or length,
            **given,
        }
    if FACTORS in source.tensors:  # how files keep Llama 3's scaling: one table for all lengths
        return {
            "rope_type": "longrope",
            "short_factor": _numbers(source, FACTORS),
            "long_factor": _numbers(source, FACTORS),
            "original_max_position_embeddings": length,
            "attention_factor": 1.0,
        }
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, **_yarn(c, original or length)}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise UnsupportedError(f"{c.path}: positions scaled by {kind!r} are not read")
    return {"rope_type": "default"}


def _yarn(c: KeyReader, original: int) -> dict[str, Any]:
    """NTK-by-parts. What the file gives as the logarithm's multiplier is a tenth of both of DeepSeek's."""
    c.refuse_unless("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    log = c.read(float | None, "rope.scaling.yarn_log_multiplier", absent=None)
    given = {
        "attention_factor": c.read(float | None, "rope.scaling.yarn_attn_factor", absent=None),
        "beta_fast": c.read(float | None, "rope.scaling.yarn_beta_fast", absent=None),
        "beta_slow": c.read(float | None, "rope.scaling.yarn_beta_slow", absent=None),
        "mscale": log and round(log * 10, 6),
        "mscale_all_dim": log and round(log * 10, 6),
    }
    told = {key: value for key, value in given.items() if value is not None}
    return {"original_max_position_embeddings": original, **told}


def _numbers(source: GgufSource, name: str) -> list[float]:
    """A short F32 tensor, read without torch."""
    info = source.tensors.get(name)
    if info is None or info.dtype != "F32" or len(info.shape) != 1 or info.shape[0] > MOST_FACTORS:
        raise CheckpointError(
            f"the scaling of positions, {name}, is missing from the GGUF file, or no short list of F32"
        )
    return [number for (number,) in struct.iter_unpack("<f", source.read_short(info))]
