"""FP8: weights of 8-bit floats, with a scale for each block of 128 x 128 as DeepSeek-V3 has it, for a row, or for all.

The scale of `{module}.weight` is `{module}.weight_scale_inv` (by which stored numbers are multiplied, whatever its name
says), `.weight_scale`, `.scale` or `.qscale_weight`; of a fused `{name}`, it is `{name}_scale_inv` or `{name}_scale`.
Activations stay 16 bits wide, whatever `activation_scheme` says, so that their scales are left out.

Liu et al., "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 3.3.
"""

from moesaic.core.errors import CheckpointError
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.encoded import Codec, Encoded
from moesaic.weights.codecs.parts import Tensors
from moesaic.weights.codecs.scaled import FP8, scaled_weight

OF_A_MODULE = (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight")
OF_A_FUSED = ("_scale_inv", "_scale")
OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".qscale_act", "_activation_scale", "_input_scale")
OF_THE_CACHE = (".k_scale", ".v_scale", ".q_scale", ".prob_scale")


class Fp8(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore("quant_method", "modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize")
        keys.ignore("quant_algo", "activation_scale_ub")
        keys.refuse_unless("fmt", "e4m3", "float8_e4m3fn")
        keys.refuse_unless("scale_fmt", "float", "ue8m0", None)
        keys.refuse_unless("expert_dtype", "fp8", None)
        scheme = keys.read(str | None, "activation_scheme", absent=None)
        if scheme not in (None, "dynamic", "static"):
            raise keys.error("activation_scheme", "there are dynamic and static")
        cache = keys.read(str | dict | None, "kv_cache_scheme", "kv_cache_quant_algo", absent=None)
        self.notes = (*(["activations"] if scheme else []), *(["the KV cache"] if cache else []))
        absent = "weight_block_size" not in keys
        self._block = (128, 128) if absent else block_of(keys, "weight_block_size")

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every weight of FP8. Raises CheckpointError."""
        found: list[Encoded] = []
        for name, info in tensors.items():
            if info.dtype in FP8 and not self.drops(name):
                options = (
                    [name.removesuffix(".weight") + kind for kind in OF_A_MODULE] if name.endswith(".weight") else []
                )
                options += [name + kind for kind in OF_A_FUSED]
                scale = next((option for option in options if option in tensors), None)
                if scale is None:
                    raise CheckpointError(f"{options[0]} is missing: the FP8 weight {name} in {info.file} has no scale")
                found.append(scaled_weight(tensors, name, name, scale, "fp8", self._block))
        return found

    def drops(self, name: str) -> bool:
        return name.endswith(OF_ACTIVATIONS) or (bool(self.notes) and name.endswith(OF_THE_CACHE))


def block_of(keys: KeyReader, key: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale. Raises ConfigError."""
    block = keys.read(list | None, key, absent=None)
    if block is None:
        return None
    if len(block) != 2 or not all(type(size) is int and size >= 1 for size in block):
        raise keys.error(key, "must be two sizes of at least 1")
    return int(block[0]), int(block[1])
