"""Which stored tensors belong together, checked against each other before a byte is read. Torch-free."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.weights.rules import Shape
from moesaic.weights.tensors import TensorInfo

SCALES = ("F32", "F16", "BF16")
Tensors = Mapping[str, TensorInfo]


def gather(tensors: Tensors, *kinds: str) -> dict[str, dict[str, str]]:
    """Module -> kind -> tensor, for tensors named `{module}.{kind}`."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        module, _, kind = name.rpartition(".")
        if kind in kinds:
            found[module][kind] = name
    return found


def require(modules: Mapping[str, Mapping[str, str]], kinds: Iterable[str], method: str) -> None:
    """Raise CheckpointError unless every module has a tensor of each of these kinds."""
    kinds = tuple(kinds)
    missing = [f"{module}.{kind}" for module, parts in modules.items() for kind in kinds if kind not in parts]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{missing[0]} is missing{more}: a {method} weight consists of {', '.join(kinds[:-1])} and {kinds[-1]}"
        )


def check(
    tensors: Tensors, name: str, dtypes: Iterable[str], shape: Shape, why: str, also: Iterable[Shape] = ()
) -> None:
    """Raise CheckpointError unless a tensor has one of these dtypes and this shape, or one that it `also` may have;
    `why` says what asks for it."""
    info, dtypes = tensors[name], tuple(dtypes)
    if info.dtype not in dtypes or info.shape not in (shape, *also):
        raise CheckpointError(
            f"{info.file}: {name} is {info.dtype} {list(info.shape)}, but {why} needs {' or '.join(dtypes)} "
            f"{list(shape)}"
        )


def spellings(lead: Shape, grid: tuple[int, int]) -> set[Shape]:
    """Shapes in which a grid of scales is stored, of each of `lead` matrices."""
    found: set[Shape] = {(*lead, *grid)}
    if grid[1] == 1:
        found.add((*lead, grid[0]))
    if grid == (1, 1):
        found.add(lead)
    return found


def matrix(tensors: Tensors, name: str, dtype: str, method: str) -> Shape:
    """The shape of a matrix of this dtype. Raises CheckpointError if it is something else."""
    info = tensors[name]
    if info.dtype != dtype or len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(
            f"{info.file}: {name} is {info.dtype} {list(info.shape)}, but a {method} weight is a matrix of {dtype}"
        )
    return info.shape


def pattern(text: str, where: str) -> re.Pattern[str]:
    """A regular expression that a config holds.

    Raises:
        ConfigError: it cannot be read, or nests repetitions, so that matching may take for ever.
    """
    try:
        found = re.compile(text)
    except re.error as e:
        raise ConfigError(f"{where}: {text!r} is no regular expression ({e})") from e
    if len(text) > 2000 or re.search(r"[*+}]\)*[*+{]|[*+}][^()]*\)[*+{]", text.replace("*?", "*").replace("+?", "+")):
        raise ConfigError(f"{where}: {text!r} repeats what is repeated, or is too long to match in any time")
    return found
