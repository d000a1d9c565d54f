"""A decode step's calls, taken down once and replayed from C++ in one call: the CPU's counterpart of a CUDA graph.

Recording runs the model's Python with a batch of `capacity` rows in which no kernel is called: each call's struct is
copied, every tensor that is made comes from buffers that stay, and every count of rows is led to one shared number. So
whatever number of rows up to the capacity is in the shared inputs, the same calls compute it, with the same bits as
the plain way. Weights are found through the structs' pointers (page tables, tables of slots), never copied.

What computes in any other way than through `calls.Kernel` would be missing in a replay: a torch operation that is not
a view stops the recording.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moesaic.kernels.cpu.arena import allocate
from moesaic.kernels.cpu.calls import Kernel

aten = torch.ops.aten

# Fields of type `moesaic_count`: in a decode step all of them count its tokens.
COUNTS = ("rows", "x_rows", "sequences")


class NotReplayable(Exception):
    """The step cannot be recorded; the message says what is in the way."""


class Call(ctypes.Structure):
    """`moesaic_call`."""

    _fields_ = (("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


class ReplayArguments(ctypes.Structure):
    """`moesaic_replay_args`."""

    _fields_ = (("calls", ctypes.POINTER(Call)), ("first", ctypes.c_int64), ("last", ctypes.c_int64))


_replay = Kernel("replay")


class Program:
    """Recorded calls.

    Attributes:
        output: what the recorded function returned; its first rows are a replay's results, until the next one.
        names: the kernels called, in order.
        cuts: indices of calls at which the recording may be interrupted (before the experts of each layer).
    """

    def __init__(self, recorder: "Recorder", output: Tensor) -> None:
        self.output = output
        self._outputs = [output[:rows] for rows in range(recorder.capacity + 1)]
        self.names = [kernel.name for kernel, _ in recorder.calls]
        self.cuts = recorder.cuts
        self.capacity = recorder.capacity
        self._rows = recorder.rows
        self._kept = recorder
        self._calls = (Call * len(recorder.calls))(
            *(
                Call(ctypes.cast(kernel.resolve(), ctypes.c_void_p), ctypes.addressof(arguments))
                for kernel, arguments in recorder.calls
            )
        )
        self._whole = ReplayArguments(self._calls, 0, len(self._calls))

    def run(self, rows: int) -> Tensor:
        """All calls for the first `rows` rows of the inputs; returns the output's rows."""
        self._rows.value = rows
        _replay(self._whole)
        return self._outputs[rows]

    def run_between(self, rows: int, stops: Sequence[tuple[int, Callable[[int], None]]]) -> Tensor:
        """The same, with something done before some calls.

        Args:
            stops: index of the call, and what is called with `rows` before it; in order.
        """
        first = 0
        for call, act in stops:
            self.run_part(rows, first, call)
            act(rows)
            first = call
        self.run_part(rows, first, len(self.names))
        return self._outputs[rows]

    def run_part(self, rows: int, first: int, last: int) -> None:
        """Calls [first, last)."""
        self._rows.value = rows
        _replay(ReplayArguments(self._calls, first, last))


def record(function: Callable[[], Tensor], capacity: int) -> Program:
    """Take down what `function` calls for a batch of `capacity` rows.

    Raises:
        NotReplayable: something in it is no kernel, or its rows are not the batch's.
    """
    recorder = Recorder(capacity)
    Kernel.recorder = recorder
    try:
        with recorder:
            output = function()
    finally:
        Kernel.recorder = None
    return Program(recorder, output)


class Recorder(TorchDispatchMode):
    """Takes down kernels' calls, and gives the tensors made meanwhile memory that stays."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.rows = ctypes.c_int64(capacity)
        self.calls: list[tuple[Kernel, ctypes.Structure]] = []
        self.cuts: list[int] = []
        self._buffers = Buffers()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to say that it must not be compiled, torch would import its compiler, which takes seconds."""
        return False

    def record(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """Keep a copy of the arguments that counts the shared rows."""
        kind = type(arguments)
        copy = kind.from_buffer_copy(arguments)
        for name in COUNTS:
            place = getattr(kind, name, None)
            if place is None:
                continue
            address = ctypes.c_void_p.from_buffer(copy, place.offset)
            count = ctypes.c_int64.from_address(address.value).value
            if count != self.capacity:
                raise NotReplayable(f"{kernel.name}: {name} is {count} in a batch of {self.capacity} rows")
            address.value = ctypes.addressof(self.rows)
        self.calls.append((kernel, copy))

    def cut(self) -> None:
        """The recording may be interrupted here."""
        self.cuts.append(len(self.calls))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.empty.memory_format:
            return self._buffers.empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
        if func is aten.empty_like.default or func is aten.new_empty.default:
            shape = args[0].shape if func is aten.empty_like.default else args[1]
            return self._buffers.empty(shape, kwargs.get("dtype") or args[0].dtype)
        if _is_view(func):
            return func(*args, **kwargs)
        raise NotReplayable(f"{func} is computed by torch")


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at its input's memory in another way."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class Buffers:
    """Memory for tensors that come and go while a step is recorded: what one leaves, a later one takes."""

    def __init__(self) -> None:
        self._blocks: list[Any] = []  # uint8 arrays
        self._free: list[int] = []

    def empty(self, shape: Any, dtype: torch.dtype) -> Tensor:
        """A tensor that lies in one of the blocks for as long as it, or a view of it, lives."""
        nbytes = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        fitting = [i for i in self._free if self._blocks[i].nbytes >= nbytes]
        if fitting:
            index = min(fitting, key=lambda i: self._blocks[i].nbytes)
            self._free.remove(index)
        else:
            index = len(self._blocks)
            self._blocks.append(allocate(nbytes).numpy())
        part = self._blocks[index][:nbytes]
        weakref.finalize(part, self._free.append, index).atexit = False  # torch holds `part` with the tensor's storage
        return torch.from_numpy(part).view(dtype).view(tuple(shape))
