"""GPTQ: codes packed along the inputs, each input of a group of its own choice.

`qweight` `[in * bits / 32, out]` int32, `qzeros` `[groups, out * bits / 32]` int32, `scales` `[groups, out]`, and
`g_idx` `[in]` int32, the group of each input, which may be absent where groups follow each other. A weight is
`scales[g] * (code - zero[g])`. The first version of the format stores each zero less one, and counts modulo 2^bits;
`checkpoint_format` tells it from the second one.

After the packing of AutoGPTQ and GPTQModel; Frantar et al., "GPTQ", arXiv:2210.17323.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.encoded import Codec, Encoded, Parts, StoredAs
from moesaic.weights.codecs.integers import Integers, IntegerWeight, packed_format, unpack
from moesaic.weights.codecs.parts import SCALES, Tensors, check, gather, matrix, pattern, require

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BITS = (2, 4, 8)
# What the quantiser was told, and what others compute with; it all leaves no trace in what the tensors mean.
IGNORED = (
    *("quant_method", "true_sequential", "damp_percent", "damp_auto_increment", "static_groups", "dataset"),
    *("tokenizer", "model_seqlen", "batch_size", "pad_token_id", "max_input_length", "cache_block_outputs"),
    *("block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize", "backend"),
    *("use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config", "model_name_or_path", "meta", "lm_head"),
    *("model_file_base_name", "act_group_aware", "hyb_act", "mse", "modules_to_not_convert", "offload_to_disk"),
    *("offload_to_disk_path", "act_order", "quantizer", "pack_impl", "gptaq", "v2", "v2_alpha", "mock_quantization"),
)


@dataclass(frozen=True)
class Settings:
    """How one weight is quantised.

    Attributes:
        group: 0 for all inputs.
        ordered: inputs may belong to any group (`desc_act`).
        less_one: zeros are stored less one.
    """

    bits: int
    group: int
    symmetric: bool
    ordered: bool
    less_one: bool


class Gptq(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore(*IGNORED)
        keys.refuse_unless("is_marlin_format", False, None)
        keys.refuse_unless("rotation", None)
        keys.refuse_unless("adapter", None)
        keys.refuse_unless("pack_dtype", "int32")
        version = keys.read(str, "checkpoint_format", "format", absent="gptq").lower()
        if version not in ("gptq", "gptq_v2"):
            raise keys.error("checkpoint_format", "only gptq and gptq_v2 are read")
        self._usual = Settings(
            bits_of(keys, BITS),
            group_of(keys, "group_size", absent=128),
            keys.read(bool, "sym", absent=True),
            keys.read(bool, "desc_act", absent=False),
            version == "gptq",
        )
        self._exceptions = [
            (
                pattern(name[2:] if name[:2] in ("+:", "-:") else name, f"{keys.path}: dynamic"),
                _changed(self._usual, each, keys.path),
            )
            for name, each in _objects(keys, "dynamic")
            if not name.startswith("-:")  # of these the tensors say it
        ]

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every quantised weight. Raises CheckpointError."""
        return gptq_weights(tensors, self._settings, "gptq")

    def added(self, tensors: Tensors) -> list[str]:
        """Biases, where every quantised module has one: AutoGPTQ wrote zeros for modules that had none."""
        biases = [f"{module}.bias" for module in gather(tensors, "qweight")]
        return biases if all(bias in tensors for bias in biases) else []

    def _settings(self, module: str) -> Settings:
        return next((settings for found, settings in self._exceptions if found.match(module)), self._usual)


def gptq_weights(tensors: Tensors, settings: Callable[[str], Settings], method: str) -> list[Encoded]:
    """Every weight in this layout. Raises CheckpointError for those that lack a part, or of which parts do not fit."""
    modules = gather(tensors, "qweight", "qzeros", "scales", "g_idx")
    require(modules, ("qweight", "qzeros", "scales"), "GPTQ")
    return [_weight(tensors, module, parts, settings(module), method) for module, parts in modules.items()]


def _weight(tensors: Tensors, module: str, parts: dict[str, str], how: Settings, method: str) -> "GptqWeight":
    each = 32 // how.bits
    words, rows = matrix(tensors, parts["qweight"], "I32", "GPTQ")
    cols = words * each
    groups = -(-cols // (how.group or cols))
    why = f"a GPTQ weight [{rows}, {cols}] of {how.bits} bits in groups of {how.group or cols}"
    check(tensors, parts["scales"], SCALES, (groups, rows), why)
    check(tensors, parts["qzeros"], ("I32",), (groups, -(-rows // each)), why)
    if "g_idx" in parts:
        check(tensors, parts["g_idx"], ("I32", "I64"), (cols,), why)
    format = None if how.ordered and groups > 1 else packed_format(how.bits, how.group, cols, how.symmetric)
    stored = StoredAs(method, f"int{how.bits}", how.group if how.group < cols else 0)
    return GptqWeight(f"{module}.weight", (rows, cols), parts, stored, format, how.symmetric, how.less_one)


@dataclass(frozen=True)
class GptqWeight(IntegerWeight):
    """One weight.

    Attributes:
        less_one: zeros are stored less one.
    """

    less_one: bool = True

    def integers(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Integers:
        import numpy as np

        bits, each = self.stored.bits, 32 // self.stored.bits
        again = stop - start < self.shape[0]  # rows do not lie together: whatever is wanted, all is read
        words = parts.whole(self.parts["qweight"], again).numpy()[:, start:stop]  # [in / each, rows]
        scales = parts.whole(self.parts["scales"], again)[:, start:stop].float().T.numpy()
        first = start // each
        zeros = unpack(parts.whole(self.parts["qzeros"], again).numpy()[:, first : -(-stop // each)], bits)
        zeros = zeros[:, start - first * each : stop - first * each]
        if self.less_one:
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
        return Integers(
            unpack(words.T, bits),
            np.ascontiguousarray(scales),
            np.ascontiguousarray(zeros.T, np.float32),
            self._group_of(parts, scales.shape[1]),
        )

    def _group_of(self, parts: Parts, groups: int) -> "Array | None":
        """The group of each input; None where groups follow each other."""
        import numpy as np

        if "g_idx" not in self.parts:
            return None
        found = parts.read(self.parts["g_idx"]).numpy()
        if (found == np.arange(len(found)) // (self.stored.group or len(found))).all():
            return None
        return checked_groups(found, groups, self.parts["g_idx"])


def checked_groups(found: "Array", groups: int, name: str) -> "Array":
    """Groups of inputs as indices. Raises CheckpointError for one that there is not."""
    from moesaic.core.errors import CheckpointError

    if found.min() < 0 or found.max() >= groups:
        raise CheckpointError(f"{name} names group {found.min()} to {found.max()}; there are {groups}")
    return found


def bits_of(keys: KeyReader, known: tuple[int, ...]) -> int:
    """The width of a code that a config states. Raises ConfigError."""
    bits = int(keys.require(int, "bits", "w_bit"))
    if bits not in known:
        raise UnsupportedError(
            f"{keys.path}: quantization_config: codes of {bits} bits are not read; those of "
            f"{', '.join(map(str, known))} are"
        )
    return bits


def group_of(keys: KeyReader, *names: str, absent: int) -> int:
    """Inputs that share a scale; 0 for all of them. Raises ConfigError."""
    group = int(keys.read(int, *names, absent=absent))
    if group < 1 and group not in (-1, 0):
        raise keys.error(names[0], "must be at least 1, or -1 for all inputs")
    return max(group, 0)


def _objects(keys: KeyReader, key: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of an object, by name, in order."""
    found = keys.read(dict | None, key, absent=None) or {}
    for name, each in found.items():
        if not isinstance(each, dict):
            raise ConfigError(f"{keys.path}: quantization_config.{key}: {name!r} must be an object, got {each!r}")
    return list(found.items())


def _changed(usual: Settings, change: dict[str, Any], path: str) -> Settings:
    """What `dynamic` says of some modules."""
    keys = KeyReader(change, path, "quantization_config.dynamic.")
    keys.ignore("damp_percent", "mse", "static_groups", "true_sequential", "act_group_aware")
    keys.refuse_unless("adapter", None)
    made = replace(
        usual,
        bits=bits_of(keys, BITS) if "bits" in keys else usual.bits,
        group=group_of(keys, "group_size", absent=usual.group or -1),
        symmetric=keys.read(bool, "sym", absent=usual.symmetric),
        ordered=keys.read(bool, "desc_act", absent=usual.ordered),
    )
    keys.finish()
    return made
