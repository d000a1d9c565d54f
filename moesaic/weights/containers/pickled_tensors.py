"""What torch's pickles are about: tensors and storages, described, and what stands for the calls that make them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from moesaic.weights.containers.stored import row_major
from moesaic.weights.rules import Shape
from moesaic.weights.tensors import ITEM_BITS, TORCH_NAMES

MAX_DIMS = 64
STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip
DTYPES = {f"torch.{theirs}": ours for ours, theirs in TORCH_NAMES.items()}


class Name(NamedTuple):
    """Something that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """In place of an object of a class that is none of torch's tensors."""

    of: Name


class Storage(NamedTuple):
    """A run of bytes beside the pickle.

    Attributes:
        dtype: None for plain bytes, of which tensors say what they are.
        key: which one.
    """

    dtype: str | None
    key: str
    nbytes: int


class PickledTensor(NamedTuple):
    """A tensor: which part of a storage it is.

    Attributes:
        offset: of its first element, in elements.
        strides: in elements; None where it lies row after row.
    """

    dtype: str
    shape: Shape
    storage: Storage
    offset: int
    strides: Shape | None


class PickleError(Exception):
    """Why a pickle is not read."""


def is_known(name: Name) -> bool:
    storage = name.module in ("torch", "torch.storage") and name.name.endswith("Storage")
    return storage or str(name) in DTYPES or str(name) in ("torch.Tensor", "torch.nn.parameter.Parameter")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str | None = None) -> PickledTensor:
    """`torch._utils._rebuild_tensor_v2`: (storage, offset, size, stride, requires_grad, hooks)."""
    dtype = storage.dtype or dtype
    numbers = (offset, *shape, *strides)
    whole = len(shape) == len(strides) <= MAX_DIMS and all(type(n) is int and 0 <= n < 1 << 60 for n in numbers)
    if dtype is None or not whole:
        raise PickleError("its pickle is damaged: a tensor's shape or strides are none")
    if prod(shape):
        end = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
        if end * ITEM_BITS[dtype] // 8 > storage.nbytes:
            raise PickleError("its pickle is damaged: a tensor reaches beyond its storage")
    shape, strides = tuple(shape), tuple(strides)
    plain = all(n == 1 or s == r for n, s, r in zip(shape, strides, row_major(shape), strict=True))
    return PickledTensor(dtype, shape, storage, offset, None if plain or not prod(shape) else strides)


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Name, *___: Any
) -> Any:
    """`torch._utils._rebuild_tensor_v3`: the storage is plain bytes."""
    if str(dtype) not in DTYPES:
        raise PickleError(f"it holds tensors of the dtype {dtype}, which is not read")
    return _tensor(storage._replace(dtype=None), offset, shape, strides, dtype=DTYPES[str(dtype)])


def _same(tensor: Any, *_: Any) -> Any:
    """`_rebuild_parameter`: (data, requires_grad, hooks), and with a state."""
    return tensor


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: (function, type, arguments, state) of a tensor with attributes."""
    build = BUILDERS.get(function)
    if build is None:
        raise PickleError(f"it holds tensors that {function} makes, which are not read")
    return build(*arguments)


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers) if isinstance(numbers, list | tuple) else ()


# What may be called, and what describes its result.
BUILDERS: dict[Any, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    Name("torch._utils", "_rebuild_parameter"): _same,
    Name("torch._utils", "_rebuild_parameter_with_state"): _same,
    Name("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    Name("torch", "Size"): _size,
    Name("torch", "device"): lambda *_: None,
    Name("collections", "OrderedDict"): lambda *_: {},
    Name("collections", "defaultdict"): lambda *_: {},
}
