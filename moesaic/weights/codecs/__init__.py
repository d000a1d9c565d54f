"""Checkpoints whose weights are quantised: what `quantization_config` means, and the floats that codes stand for.

A codec makes of the several tensors that one weight is stored as (codes, scales, zero points) one tensor of floats with
the weight's own name and shape, decoded piece by piece when it is read. Torch-free until read.
"""

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError, unknown_name
from moesaic.core.keys import KeyReader
from moesaic.core.log import get_logger
from moesaic.weights.codecs.auto_round import AutoRound
from moesaic.weights.codecs.awq import Awq
from moesaic.weights.codecs.compressed_tensors import CompressedTensors
from moesaic.weights.codecs.encoded import Codec, DecodedSource, Parts, StoredAs
from moesaic.weights.codecs.fp8 import Fp8
from moesaic.weights.codecs.gguf import Gguf
from moesaic.weights.codecs.gptq import Gptq
from moesaic.weights.codecs.mxfp4 import Mxfp4
from moesaic.weights.codecs.refused import METHODS, quantised_as
from moesaic.weights.containers.gguf import GgufSource
from moesaic.weights.sources import Source

__all__ = ["CODECS", "Codec", "StoredAs", "codec_of", "decoded", "method_of", "stored_as"]

log = get_logger(__name__)


# quant_method of a config.json -> what decodes it, made of the keys of the config's object
CODECS: dict[str, Callable[[KeyReader], Codec]] = {
    "auto-round": AutoRound,
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "gguf": Gguf,
    "gptq": Gptq,
    "intel/auto-round": AutoRound,
    "mxfp4": Mxfp4,
}
PLACES = ("quantization_config", "compression_config")  # of it in a config, the usual one first


def method_of(config: Mapping[str, Any], where: str = "config.json") -> str | None:
    """The `quant_method` that a config states, of the model or of its text; None where its weights are plain.

    Raises:
        UnsupportedError: it is none that is decoded here, or one of a kind that is not.
        ConfigError: what it says cannot be read.
    """
    found = _object(config, where)
    if found is None:
        return None
    codec_of(config, where)
    return str(found["quant_method"])


def codec_of(config: Mapping[str, Any], where: str = "config.json") -> Codec | None:
    """What decodes a checkpoint with this config; None where its weights are plain. Raises as `method_of` does."""
    found = _object(config, where)
    if found is None:
        return None
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in CODECS:
        name = METHODS.get(str(method).lower())
        what = name or unknown_name("method", str(method), CODECS)
        raise UnsupportedError(
            f"{where}: quantization_config (method {method}): {what} is not read: {', '.join(CODECS)} are; use a "
            "checkpoint in one of these, or an unquantised one"
        )
    keys = KeyReader(found, where, "quantization_config.")
    codec = CODECS[str(method)](keys)
    keys.finish()
    return codec


def decoded(source: Source, config: Mapping[str, Any]) -> Source:
    """The checkpoint's tensors as floats, whatever its config says they are kept as.

    Raises:
        UnsupportedError, ConfigError: as `method_of`.
        CheckpointError: a weight lacks one of its parts, or they do not fit each other.
    """
    codec = codec_of(config)
    if isinstance(source, GgufSource):
        if not isinstance(codec, Gguf):
            raise CheckpointError("the weights are GGUF, but the config is of others: name the .gguf file itself")
        return codec.open(source)
    if codec is None:
        found = quantised_as(source.tensors)
        if found is not None:
            name, format = found
            raise CheckpointError(
                f"{source.tensors[name].file} holds {name}, so that it looks quantised ({format}), but config.json has "
                "no quantization_config that says how"
            )
        return source
    for what in codec.notes:
        log.info("the checkpoint quantises %s, too; here that stays 16 bits wide", what)
    parts = Parts(source)
    dropped = [name for name in source.tensors if codec.drops(name)]
    dropped += [name for name in codec.added(source.tensors) if not parts.read(name).any()]
    return DecodedSource(source, codec.weights(source.tensors), dropped)


def stored_as(source: Source) -> Mapping[str, StoredAs]:
    """How each quantised weight of a source that `decoded` made is kept in the checkpoint, by the weight's name."""
    if not isinstance(source, DecodedSource):
        return {}
    return {name: weight.stored for name, weight in source.weights.items()}


def _object(config: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """The config's object about quantisation."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for place in PLACES:
            found = part.get(place)
            if found is not None:
                if not isinstance(found, Mapping):
                    raise ConfigError(f"{where}: {place} must be an object, got {found!r}")
                return found
    return None
