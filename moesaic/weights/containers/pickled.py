"""What torch's pickles say of tensors, read without running any of them. Torch-free.

A pickle is a program for a small stack machine, and `pickle` runs it with Python's own objects: names are imported,
what they name is called. The machine here knows the opcodes that torch writes and nothing that could be called: a name
stays a name, a call of one of torch's few builders of tensors becomes a description of that tensor, and any other is
refused, or, in the files of training programs, which hold their settings too, becomes a placeholder that nothing is put
into. Each step makes one small object at most, so memory is bounded by the number of steps.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.pickled_tensors import (
    BUILDERS,
    STORAGES,
    Name,
    PickleError,
    Placeholder,
    Storage,
    is_known,
)
from moesaic.weights.tensors import ITEM_BITS

MAX_STEPS = 2_500_000  # of one pickle: some 60,000 tensors, and well under 300 MB of objects
SMALL = 4096  # bytes of a pickle of which the result is remembered
SCALARS = (str, int, float, bool, bytes, type(None))


def read_pickle(data: bytes, path: str, lenient: bool = False) -> Any:
    """What a pickle of torch's holds: dicts, lists, tuples and scalars, with a PickledTensor for each tensor. It may be
    the same object for the same pickle, so it is to be left as it is.

    Args:
        path: of the file, for messages.
        lenient: objects of other classes become placeholders.

    Raises:
        CheckpointError: the pickle is damaged, or asks for something that is not read, by name.
    """
    try:
        return _read_small(data, lenient) if len(data) <= SMALL else _Machine(data, lenient).run()
    except PickleError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error) as e:
        raise CheckpointError(f"cannot read {path}: its pickle is damaged ({e!r})") from e


@lru_cache(maxsize=256)
def _read_small(data: bytes, lenient: bool) -> Any:
    """The files of a checkpoint's experts have few different pickles among them: often one for all of a shape."""
    return _Machine(data, lenient).run()


class _Machine:
    """The stack machine; `marks` are heights of the stack."""

    def __init__(self, data: bytes, lenient: bool) -> None:
        self.data, self.lenient = data, lenient
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, opcodes = self.data, OPCODES
        for _ in range(MAX_STEPS):
            opcode = data[self.at]
            self.at += 1
            if opcode == 0x2E:  # STOP
                return self.stack.pop()
            handler = opcodes.get(opcode)
            if handler is None:
                raise PickleError(f"its pickle holds the opcode {opcode:#04x}, which torch does not write")
            handler(self)
        raise PickleError(f"its pickle takes more than {MAX_STEPS} steps")

    def take(self, count: int) -> bytes:
        """The next so many bytes."""
        taken = self.data[self.at : self.at + count]
        if count < 0 or len(taken) < count:
            raise PickleError("its pickle is cut off")
        self.at += count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        line = self.data[self.at : end].decode()
        self.at = end + 1
        return line

    def marked(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if not (self.lenient or found in BUILDERS or is_known(found)):
            raise PickleError(
                f"it holds more than weights: loading it would call {found}, and only torch's tensors are read"
            )
        self.stack.append(found)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        build = BUILDERS.get(function) if isinstance(function, Name) else None
        if build is None:
            if not self.lenient or not isinstance(function, Name | Placeholder):
                raise PickleError(f"it holds more than weights: loading it would call {function}")
            self.stack.append(Placeholder(function) if isinstance(function, Name) else function)
        else:
            self.stack.append(build(*arguments))

    def set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, dict):
            pairs = zip(islice(items, 0, None, 2), islice(items, 1, None, 2), strict=True)
            into.update((key, value) for key, value in pairs if isinstance(key, SCALARS))
        elif not isinstance(into, Placeholder):
            raise PickleError("its pickle is damaged: something that is no dictionary is filled as one")

    def append(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, list):
            into.extend(items)
        elif not isinstance(into, Placeholder):
            raise PickleError("its pickle is damaged: something that is no list is filled as one")

    def persistent(self) -> None:
        kind, storage, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise PickleError("its pickle is damaged: it describes a storage in a way that torch does not")
        dtype = STORAGES.get(storage.name.removesuffix("Storage"))
        if dtype is None and storage.name != "UntypedStorage":
            raise PickleError(f"it holds tensors of the kind {storage}, which are not read")
        self.stack.append(Storage(dtype, key, count if dtype is None else count * ITEM_BITS[dtype] // 8))


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def make(m: _Machine) -> None:
        items = tuple(m.stack[-count:])
        if len(items) < count:
            raise PickleError("its pickle is damaged: too little is on its stack")
        m.stack[-count:] = [items]

    return make


def _push(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(read(m))


def _remember(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    def remember(m: _Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return remember


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, SCALARS)}


def _new(m: _Machine) -> None:  # an object's __new__ is called no more than anything else
    m.call()


def _new_with_names(m: _Machine) -> None:
    m.stack.pop()
    m.call()


def _stack_name(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickleError("its pickle is damaged: something that is no text is imported")
    m.name(module, name)


OPCODES: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME, of which the length matters to who reads piece by piece
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.marked(),
    ord("}"): _push(lambda m: {}),
    ord("]"): _push(lambda m: []),
    ord(")"): _push(lambda m: ()),
    0x8F: _push(lambda m: []),  # a set: nothing that is read is in one
    0x90: lambda m: m.append(m.marked()),
    0x91: _push(lambda m: m.marked()),
    ord("d"): _push(lambda m: _dict_of(m.marked())),
    ord("l"): _push(lambda m: m.marked()),
    ord("t"): _push(lambda m: tuple(m.marked())),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.marked()),
    ord("q"): _remember(lambda m: m.number(1)),
    ord("r"): _remember(lambda m: m.number(4)),
    0x94: _remember(lambda m: len(m.memo)),
    ord("h"): _push(lambda m: m.memo[m.number(1)]),
    ord("j"): _push(lambda m: m.memo[m.number(4)]),
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("J"): _push(lambda m: int.from_bytes(m.take(4), "little", signed=True)),
    ord("K"): _push(lambda m: m.number(1)),
    ord("M"): _push(lambda m: m.number(2)),
    0x8A: _push(lambda m: int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    0x8B: _push(lambda m: int.from_bytes(m.take(m.number(4)), "little", signed=True)),
    ord("G"): _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    ord("X"): _push(lambda m: m.take(m.number(4)).decode(errors="surrogatepass")),
    0x8C: _push(lambda m: m.take(m.number(1)).decode(errors="surrogatepass")),
    0x8D: _push(lambda m: m.take(m.number(8)).decode(errors="surrogatepass")),
    ord("U"): _push(lambda m: m.take(m.number(1)).decode("latin-1")),
    ord("T"): _push(lambda m: m.take(m.number(4)).decode("latin-1")),
    ord("C"): _push(lambda m: m.take(m.number(1))),
    ord("B"): _push(lambda m: m.take(m.number(4))),
    0x8E: _push(lambda m: m.take(m.number(8))),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _stack_name,
    ord("R"): lambda m: m.call(),
    0x81: _new,
    0x92: _new_with_names,
    ord("b"): lambda m: m.stack.pop(),  # an object's state: attributes of a dictionary, or of a placeholder
    ord("Q"): lambda m: m.persistent(),
}
