"""What serving a model takes in memory, from its spec: weights at every precision, keys and values. Torch-free."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import get_args

from moesaic.adapt.parts import part_of
from moesaic.core.config import DType, KVCacheDType
from moesaic.core.errors import ConfigError
from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.library import Unavailable, isa
from moesaic.models.caches import BLOCK, bytes_per_block, bytes_per_sequence
from moesaic.models.parameters import Kept, kept_weights, weight_bytes
from moesaic.models.spec import ModelSpec
from moesaic.weights.quantization import FORMATS, QuantizationPlan
from moesaic.weights.rules import numberless

QUADS = "avx512_bf16"  # the instruction set whose kernels keep sums beside 8-bit codes
AS_STORED = "as stored"  # codes of a quantised checkpoint, used as they are


@dataclass(frozen=True)
class Weights:
    """The model's weights in memory.

    Attributes:
        scheme: `--quantization`; or "as stored".
        nbytes: of all.
        parts: of the parts of the model (`adapt.parts.PARTS`).
    """

    scheme: str
    nbytes: int
    parts: Mapping[str, int]


@dataclass(frozen=True)
class Cache:
    """Keys and values, and recurrent state, in one dtype.

    Attributes:
        dtype: `--kv-cache-dtype`.
        token: bytes of each token of a sequence.
        sequence: bytes of each running sequence, whatever its length.
        full_length: bytes of one request of `max_position_embeddings` tokens.
    """

    dtype: str
    token: float
    sequence: int
    full_length: int


@dataclass(frozen=True)
class Memory:
    """What serving takes.

    Attributes:
        dtype: of weights that are not quantised.
        length: tokens of a request of full length.
    """

    dtype: str
    length: int
    weights: tuple[Weights, ...]
    caches: tuple[Cache, ...]


def memory_of(
    spec: ModelSpec, dtype: DType, stored: Mapping[str, WeightFormat] | None = None, fixed: bool = False
) -> Memory:
    """What serving a model takes on this machine's kernels.

    Args:
        dtype: of weights that are not quantised.
        stored: matrices that a checkpoint holds as codes, by the parameters in them, and their formats.
        fixed: they can be kept in no other way, as what is packed.
    """
    kept = list(kept_weights(spec))
    of_schemes = formats_of_schemes(dtype, stored)
    if fixed:
        of_schemes = dict(list(of_schemes.items())[:1])
    weights = tuple(_weights(spec, kept, scheme, format_of) for scheme, format_of in of_schemes.items())
    return Memory(dtype, spec.max_position_embeddings, weights, tuple(_cache(spec, d) for d in get_args(KVCacheDType)))


def formats_of_schemes(
    dtype: DType, stored: Mapping[str, WeightFormat] | None = None
) -> dict[str, Callable[[str], WeightFormat]]:
    """Each way of keeping weights, the checkpoint's own first where it holds codes -> the format of a matrix, by its
    canonical name. Arguments as of `memory_of`."""
    of_schemes = {scheme: _alike(QuantizationPlan(dtype, scheme).format_of) for scheme in FORMATS}
    if stored:
        plain = of_schemes["none"]
        of_schemes = {AS_STORED: lambda name: stored.get(name) or plain(name), **of_schemes}
    return of_schemes


def _alike(format_of: Callable[[str], WeightFormat]) -> Callable[[str], WeightFormat]:
    """The same, asked once for names that differ in numbers alone: a scheme has no exceptions."""
    known: dict[str, WeightFormat] = {}

    def format(name: str) -> WeightFormat:
        pattern = numberless(name)
        if pattern not in known:
            known[pattern] = format_of(name)
        return known[pattern]

    return format


def _weights(spec: ModelSpec, kept: Sequence[Kept], scheme: str, format_of: Callable[[str], WeightFormat]) -> Weights:
    parts: dict[str, int] = defaultdict(int)
    for name, count in weight_bytes(spec, format_of, _instructions() == QUADS, kept).items():
        parts[part_of(name)] += count
    return Weights(scheme, sum(parts.values()), dict(parts))


def _cache(spec: ModelSpec, dtype: str) -> Cache:
    block, sequence = bytes_per_block(spec, dtype), bytes_per_sequence(spec, dtype)
    full = -(-spec.max_position_embeddings // BLOCK) * block + sequence
    return Cache(dtype, block / BLOCK, sequence, full)


@cache
def _instructions() -> str:
    try:
        return isa()
    except (Unavailable, ConfigError):
        return ""
