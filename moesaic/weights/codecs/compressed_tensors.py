"""compressed-tensors: what llm-compressor writes. Read are integers of 8 and 4 bits, and FP8.

pack-quantized   `{module}.weight_packed` `[out, in * bits / 32]` int32 (codes plus half of their range),
                 `weight_scale` `[out, groups]`, `weight_shape`; where it is asymmetric `weight_zero_point`
                 `[out * bits / 32, groups]` int32, packed along its first dimension; `weight_g_idx` `[in]` where inputs
                 are not in the order of their groups
int-quantized    `{module}.weight` `[out, in]` int8, `weight_scale`, `weight_zero_point` int8
float-quantized  `{module}.weight` `[out, in]` FP8, `weight_scale`: for all, by row, by group or by block

Which of the config's groups a module is in, its `targets` say; that a module is not quantised, its tensors do.
Activations and the KV cache stay 16 bits wide, so that their scales are left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.core.keys import KeyReader
from moesaic.weights.codecs.encoded import Codec, Encoded, Parts, StoredAs
from moesaic.weights.codecs.fp8 import OF_THE_CACHE, block_of
from moesaic.weights.codecs.gptq import checked_groups, group_of
from moesaic.weights.codecs.integers import Integers, IntegerWeight, packed_format, unpack
from moesaic.weights.codecs.parts import SCALES, Tensors, check, gather, matrix, pattern, require, spellings
from moesaic.weights.codecs.scaled import FP8, scaled_weight

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

METHOD = "compressed-tensors"
READ = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
FORMATS = (*READ, "dense", "mixed-precision")
OF_ACTIVATIONS = (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")
CACHE_ZEROS = (".k_zero_point", ".v_zero_point")
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True)
class Group:
    """How the modules of one group are quantised.

    Attributes:
        names, patterns: modules that are meant; `classes` means all of a kind.
        group: inputs that share a scale; 0 for all.
        block: rows and columns that share one, or None.
        rows: each row has a scale of its own.
    """

    names: frozenset[str]
    patterns: tuple[Any, ...]
    classes: bool
    bits: int
    group: int
    block: tuple[int, int] | None
    rows: bool
    symmetric: bool
    ordered: bool


class CompressedTensors(Codec):
    """The scheme that a config describes. Raises ConfigError."""

    def __init__(self, keys: KeyReader) -> None:
        keys.ignore("quant_method", "quantization_status", "ignore", "global_compression_ratio", "version", "provider")
        self._refuse_format(keys)
        for part in ("sparsity_config", "transform_config"):
            other = keys.child(part)
            other.refuse_unless("format", "dense")
            other.refuse_unless("config_groups", {}, None)
            other.ignore("ignore", "targets", "registry_requires_subclass", "sparsity_structure", "global_sparsity")
        cache = keys.read(dict | None, "kv_cache_scheme", absent=None)
        groups = keys.read(dict | None, "config_groups", absent=None) or {}
        self._groups = [self._read(keys, name, each) for name, each in groups.items()]
        activations = any(each.get(f"{side}_activations") for each in groups.values() for side in ("input", "output"))
        self.notes = (*(["activations"] if activations else []), *(["the KV cache"] if cache else []))

    def weights(self, tensors: Tensors) -> list[Encoded]:
        """Every quantised weight. Raises CheckpointError."""
        parts = gather(
            tensors, "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"
        )
        packed = {module: each for module, each in parts.items() if "weight_packed" in each or "weight_shape" in each}
        require(packed, ("weight_packed", "weight_scale", "weight_shape"), METHOD)
        plain = {m: each for m, each in parts.items() if m not in packed and self._coded(tensors, each)}
        require(plain, ("weight", "weight_scale"), METHOD)
        return [self._weight(tensors, module, each) for module, each in {**packed, **plain}.items()]

    def drops(self, name: str) -> bool:
        of_cache = "the KV cache" in self.notes and name.endswith((*OF_THE_CACHE, *CACHE_ZEROS))
        return of_cache or (bool(self.notes) and name.endswith(OF_ACTIVATIONS))

    def _coded(self, tensors: Tensors, parts: Mapping[str, str]) -> bool:
        """Whether a module that is not packed has codes, or lost them."""
        if "weight" not in parts:
            return "weight_scale" in parts
        return tensors[parts["weight"]].dtype in ("I8", *FP8)

    def _weight(self, tensors: Tensors, module: str, parts: dict[str, str]) -> Encoded:
        how = self._group_of(module)
        dtype = tensors[parts["weight"]].dtype if "weight" in parts else "I32"
        if dtype in FP8:
            block = how.block or ((1, how.group) if how.group else None)
            name = f"{module}.weight"
            return scaled_weight(tensors, name, parts["weight"], parts["weight_scale"], METHOD, block)
        return _integer(tensors, module, {k: p for k, p in parts.items() if k != "weight" or dtype == "I8"}, how)

    def _group_of(self, module: str) -> Group:
        """The group of a module: by its name, else by a pattern, else by its kind. Raises CheckpointError."""
        for fits in (
            lambda group: any(module == name or module.endswith(f".{name}") for name in group.names),
            lambda group: any(found.match(module) for found in group.patterns),
            lambda group: group.classes,
        ):
            found = next((group for group in self._groups if fits(group)), None)
            if found is not None:
                return found
        raise CheckpointError(
            f"{module} is quantised, but it is no target of any of quantization_config's config_groups"
        )

    def _read(self, keys: KeyReader, name: str, values: Any) -> Group:
        if not isinstance(values, dict):
            raise ConfigError(f"{keys.path}: quantization_config.config_groups: {name} must be an object")
        prefix = f"quantization_config.config_groups.{name}."
        group = KeyReader(values, keys.path, prefix)
        self._refuse_format(group)
        group.ignore("input_activations", "output_activations")
        weights = group.child("weights")
        weights.ignore("observer", "observer_kwargs", "scale_dtype", "zp_dtype", "actorder_kwargs")
        weights.refuse_unless("dynamic", False, None)
        weights.refuse_unless("type", "int", "float")
        strategy = weights.read(str | None, "strategy", absent=None)
        size = group_of(weights, "group_size", absent=0) if weights.read(int | None, "group_size", absent=None) else 0
        strategy = strategy or ("group" if size else "tensor")
        if strategy not in STRATEGIES:
            raise weights.error("strategy", f"only {', '.join(STRATEGIES)} are read")
        if strategy == "group" and not size:
            raise weights.error("group_size", "must be at least 1 where the strategy is group")
        targets = group.read(list | None, "targets", absent=None) or []
        if not all(isinstance(target, str) for target in targets):
            raise group.error("targets", "must be names")
        made = Group(
            *_targets(targets, keys.path),
            bits=bits_of_weights(weights),
            group=size if strategy == "group" else 0,
            block=block_of(weights, "block_structure") if strategy == "block" else None,
            rows=strategy != "tensor",
            symmetric=weights.read(bool, "symmetric", absent=True),
            ordered=weights.read(str | bool | None, "actorder", absent=None) in ("group", "dynamic", True),
        )
        weights.ignore("block_structure")
        group.finish()
        return made

    @staticmethod
    def _refuse_format(keys: KeyReader) -> None:
        format = keys.read(str | None, "format", absent=None)
        if format is not None and format not in FORMATS:
            raise UnsupportedError(
                f"{keys.path}: quantization_config: {METHOD} of the format {format} is not read; {', '.join(READ)} are"
            )


def bits_of_weights(keys: KeyReader) -> int:
    """Bits of a code; 8 where all weights are plain. Raises ConfigError."""
    if "num_bits" not in keys:
        return 8
    bits = int(keys.require(int, "num_bits"))
    if bits not in (2, 4, 8) or (bits != 8 and keys.read(str, "type", absent="int") == "float"):
        kind = keys.read(str, "type", absent="int")
        raise UnsupportedError(f"{keys.path}: quantization_config: {METHOD} {kind}s of {bits} bits are not read")
    return bits


def _targets(targets: Iterable[str], path: str) -> tuple[frozenset[str], tuple[Any, ...], bool]:
    """Names and patterns of modules, and whether all of a kind are meant (`Linear`: what is a module's class cannot be
    told from its tensors, which is why a kind means all that is quantised)."""
    patterns = tuple(pattern(t[3:], f"{path}: quantization_config: targets") for t in targets if t.startswith("re:"))
    others = [t for t in targets if not t.startswith("re:")]
    kinds = [t for t in others if "." not in t and t[:1].isupper()]
    return frozenset(set(others) - set(kinds)), patterns, bool(kinds)


def _integer(tensors: Tensors, module: str, parts: dict[str, str], how: Group) -> "CompressedIntegers":
    packed = "weight_packed" in parts
    bits = how.bits if packed else 8
    each = 32 // bits if packed else 1
    rows, words = matrix(tensors, parts["weight_packed" if packed else "weight"], "I32" if packed else "I8", METHOD)
    cols = words * each
    groups = -(-cols // (how.group or cols))
    why = f"the {METHOD} weight [{rows}, {cols}] of {bits} bits" + (f" in groups of {how.group}" if how.group else "")
    grid = (rows, groups) if how.rows else (1, 1)
    check(tensors, parts["weight_scale"], SCALES, grid, why, spellings((), grid))
    if "weight_zero_point" in parts:
        name = parts["weight_zero_point"]
        if packed and tensors[name].dtype == "I32":
            check(tensors, name, ("I32",), (-(-rows // each), groups), why)
        else:
            check(tensors, name, ("I8",), grid, why, spellings((), grid))
    elif not how.symmetric:
        raise CheckpointError(f"{module}.weight_zero_point is missing: quantization_config says it is not symmetric")
    if "weight_g_idx" in parts:
        check(tensors, parts["weight_g_idx"], ("I32", "I64"), (cols,), why)
    if "weight_shape" in parts:
        check(tensors, parts["weight_shape"], ("I64", "I32"), (2,), why)
    moved = how.ordered and "weight_g_idx" in parts
    return CompressedIntegers(
        f"{module}.weight",
        (rows, cols),
        parts,
        StoredAs(METHOD, f"int{bits}", how.group, 1 if how.rows else 0),
        None if moved else packed_format(bits, how.group, cols, how.symmetric),
        how.symmetric,
    )


@dataclass(frozen=True)
class CompressedIntegers(IntegerWeight):
    """One weight, packed or of int8."""

    def integers(self, parts: Parts, lead: tuple[int, ...], start: int, stop: int) -> Integers:
        import numpy as np

        bits, rows = self.stored.bits, slice(start, stop)
        if "weight_packed" in self.parts:
            self._check_shape(parts)
            codes = unpack(parts.read(self.parts["weight_packed"], (rows,)).numpy(), bits)
        else:
            codes = parts.read(self.parts["weight"], (rows,)).numpy().view(np.uint8) ^ np.uint8(128)
        scales = parts.read(self.parts["weight_scale"], (rows,) if self.stored.rows else ()).float().numpy()
        scales = scales.reshape(stop - start, -1) if self.stored.rows else np.full((stop - start, 1), scales.item())
        return Integers(
            codes, np.ascontiguousarray(scales), self._zeros(parts, start, stop), self._groups(parts, scales)
        )

    def _zeros(self, parts: Parts, start: int, stop: int) -> "Array | None":
        """`[rows, groups]`, in terms of unsigned codes."""
        import numpy as np

        if "weight_zero_point" not in self.parts:
            return None
        name, bits = self.parts["weight_zero_point"], self.stored.bits
        if parts.dtype(name) == "I8":
            rows = (slice(start, stop),) if self.stored.rows else ()
            signed: Array = parts.read(name, rows).numpy().astype(np.float32) + np.float32(1 << (bits - 1))
            return signed.reshape(stop - start if self.stored.rows else 1, -1)
        each = 32 // bits
        first = start // each
        words = parts.read(name, (slice(first, -(-stop // each)),)).numpy()
        zeros = unpack(words.T, bits)[:, start - first * each : stop - first * each]
        return np.ascontiguousarray(zeros.T, np.float32)

    def _groups(self, parts: Parts, scales: "Array") -> "Array | None":
        """The group of each input; None where groups follow each other."""
        import numpy as np

        if "weight_g_idx" not in self.parts:
            return None
        found = parts.read(self.parts["weight_g_idx"]).numpy()
        if (found == -1).all() or (found == np.arange(len(found)) // (self.stored.group or len(found))).all():
            return None  # -1: nothing is out of order, as those who write it say
        return checked_groups(found, scales.shape[1], self.parts["weight_g_idx"])

    def _check_shape(self, parts: Parts) -> None:
        said = tuple(parts.read(self.parts["weight_shape"]).tolist())
        if said != self.shape:
            raise CheckpointError(
                f"{self.parts['weight_shape']} says {list(said)}, but {self.parts['weight_packed']} holds "
                f"{list(self.shape)}; weights that were padded to be packed are not read"
            )
