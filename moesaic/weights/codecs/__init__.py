"""Checkpoints whose weights are quantised: what `quantization_config` means, and the floats that codes stand for.

A codec makes of the several tensors that one weight is stored as (codes, scales, zero points) one tensor of floats with
the weight's own name and shape, decoded piece by piece when it is read. Torch-free until read.
"""

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.weights.sources import Source

Codec = Callable[[Source, Mapping[str, Any]], Source]

# quant_method of a config.json -> what decodes it: (the stored tensors, the config's object) -> floats by name
CODECS: dict[str, Codec] = {}


def method_of(config: Mapping[str, Any], where: str = "config.json") -> str | None:
    """The `quant_method` that a config states; None where its weights are plain.

    Raises:
        UnsupportedError: it is none that is decoded here.
        ConfigError: what it says is not an object.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    if not isinstance(quantization, Mapping):
        raise ConfigError(f"{where}: quantization_config must be an object, got {quantization!r}")
    method = str(quantization.get("quant_method", "unknown"))
    if method not in CODECS:
        known = f"only {', '.join(sorted(CODECS))} are" if CODECS else "use an unquantised one"
        raise UnsupportedError(f"{where}: quantization_config (method {method}) is not supported yet: {known}")
    return method


def decoded(source: Source, config: Mapping[str, Any]) -> Source:
    """The checkpoint's tensors as floats, whatever its config says they are kept as. Raises as `method_of` does."""
    method = method_of(config)
    return source if method is None else CODECS[method](source, config["quantization_config"])
