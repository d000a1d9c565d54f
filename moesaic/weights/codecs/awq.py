"""AWQ: codes packed along the outputs, interleaved.

`qweight` `[in, out * bits / 32]` int32, `qzeros` `[groups, out * bits / 32]` int32, `scales` `[groups, out]`. A word
holds consecutive outputs in the order of ORDER, its lowest bits first. A weight is `scales[g] * (code - zero[g])`.

After the "gemm" packing of AutoAWQ; Lin et al., "AWQ", arXiv:2306.00978.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.encoded import Codec, Encoded, Parts, StoredAs
from moesaic.weights.codecs.gptq import bits_of, group_of
from moesaic.weights.codecs.integers import Integers, IntegerWeight, packed_format
from moesaic.weights.codecs.parts import SCALES, Tensors, check, gather, matrix, require

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
BITS = tuple(ORDER)
IGNORED = (
    *("quant_method", "backend", "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse"),
    *("exllama_config", "lm_head", "desc_act", "sym", "dataset", "tokenizer", "damp_percent", "act_group_aware"),
    *("true_sequential", "model_seqlen", "batch_size", "pad_token_id", "max_input_length", "cache_block_outputs"),
    *("block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize", "meta"),
)


@dataclass(frozen=True)
class Settings:
    """How one weight is quantised; `group` 0 is all inputs."""

    bits: int
    group: int


class Awq(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore(*IGNORED)
        version = keys.read(str, "version", "format", absent="gemm").lower()
        if version not in ("gemm", "exllama"):  # the latter is the former, repacked when it is loaded
            raise keys.error("version", "only gemm is read")
        keys.refuse_unless("zero_point", True)
        self._settings = Settings(bits_of(keys, BITS), group_of(keys, "group_size", "q_group_size", absent=128))

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every quantised weight. Raises CheckpointError."""
        return awq_weights(tensors, lambda module: self._settings, "awq")


def awq_weights(tensors: Tensors, settings: Callable[[str], Settings], method: str) -> list[Encoded]:
    """Every weight in this layout. Raises CheckpointError for those that lack a part, or of which parts do not fit."""
    modules = gather(tensors, "qweight", "qzeros", "scales")
    require(modules, ("qweight", "qzeros", "scales"), "AWQ")
    return [_weight(tensors, module, parts, settings(module), method) for module, parts in modules.items()]


def _weight(tensors: Tensors, module: str, parts: dict[str, str], how: Settings, method: str) -> "AwqWeight":
    cols, words = matrix(tensors, parts["qweight"], "I32", "AWQ")
    rows = words * (32 // how.bits)
    groups = -(-cols // (how.group or cols))
    why = f"an AWQ weight [{rows}, {cols}] of {how.bits} bits in groups of {how.group or cols}"
    check(tensors, parts["scales"], SCALES, (groups, rows), why)
    check(tensors, parts["qzeros"], ("I32",), (groups, words), why)
    stored = StoredAs(method, f"int{how.bits}", how.group if how.group < cols else 0)
    return AwqWeight(
        f"{module}.weight", (rows, cols), parts, stored, packed_format(how.bits, how.group, cols, symmetric=False)
    )


@dataclass(frozen=True)
class AwqWeight(IntegerWeight):
    """One weight."""

    def integers(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Integers:
        import numpy as np

        scales = parts.whole(self.parts["scales"], stop - start < self.shape[0])[:, start:stop].float().T.numpy()
        zeros = self._rows(parts, "qzeros", start, stop)
        codes = self._rows(parts, "qweight", start, stop)
        return Integers(codes, np.ascontiguousarray(scales), zeros.astype(np.float32))

    def _rows(self, parts: Parts, kind: str, start: int, stop: int) -> "Array":
        """`[rows, n]` uint8, of `[n, out * bits / 32]` words."""
        import numpy as np

        bits, order = self.stored.bits, ORDER[self.stored.bits]
        each, first = len(order), start // len(order)
        words = parts.whole(self.parts[kind], stop - start < self.shape[0]).numpy()[:, first : -(-stop // each)].T
        octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
        codes = np.empty((len(words), each, words.shape[1]), np.uint8)
        for place, row in enumerate(order):
            octet, shift = divmod(place * bits, 8)
            np.right_shift(octets[:, :, octet], np.uint8(shift), out=codes[:, row])
        codes &= np.uint8((1 << bits) - 1)
        return codes.reshape(len(words) * each, -1)[start - first * each : stop - first * each]
