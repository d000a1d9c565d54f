"""Memory for weights: anonymous, in huge pages where the machine gives them, zero until it is touched."""

import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from moesaic.core.errors import ConfigError

HUGE_PAGE = 2 << 20
PAGE = 4096


def allocate(nbytes: int) -> Tensor:
    """`nbytes` zeros, uint8, aligned to 4 KiB, and to 2 MiB in huge pages where there is enough to fill one.

    Pages take memory when they are first written. They are given back when the last tensor on them goes.

    Raises:
        ConfigError: there is not so much memory, or a limit forbids it.
    """
    size = max(nbytes, 1)
    huge = size >= HUGE_PAGE
    align = HUGE_PAGE if huge else PAGE
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        block = mmap.mmap(-1, round_up(size, align) + align, **private)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"there is no memory for {size / 1e9:.1f} GB of weights at once ({e})") from e
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(block, dtype=torch.uint8)  # holds the mapping
    start = -whole.data_ptr() % align
    return whole[start : start + nbytes]


def nowhere(nbytes: int) -> Tensor:
    """`nbytes` that lie in no memory: for a model that is only asked what it consists of."""
    return torch.empty(nbytes, dtype=torch.uint8, device="meta")


class Arena:
    """One allocation from which many tensors are taken, in order.

    Attributes:
        data: all of it, uint8.
        used: bytes taken so far.
    """

    def __init__(self, nbytes: int, allocator: Callable[[int], Tensor] = allocate) -> None:
        self.data = allocator(nbytes)
        self.used = 0

    def take(self, nbytes: int, align: int = 64) -> Tensor:
        """The next `nbytes` at an address that `align` (a power of two, at most 4096) divides, uint8.

        Raises:
            MemoryError: the arena is smaller than what is taken from it.
        """
        start = round_up(self.used, align)
        if start + nbytes > self.data.numel():
            raise MemoryError(f"an arena of {self.data.numel()} bytes has no room for {nbytes} after {start}")
        self.used = start + nbytes
        return self.data[start : self.used]


class Arenas:
    """Arenas one after another, as many as it takes. What is reserved and never written takes no memory."""

    BLOCK = 256 << 20

    def __init__(self, allocator: Callable[[int], Tensor] = allocate) -> None:
        self._allocator = allocator
        self._open: Arena | None = None

    def reserve(self, nbytes: int) -> Arena:
        """An arena of its own."""
        return Arena(nbytes, self._allocator)

    def take(self, nbytes: int, align: int = 64) -> Tensor:
        """`nbytes` zeros at an address that `align` (a power of two, at most 4096) divides, uint8."""
        if self._open is None or round_up(self._open.used, align) + nbytes > self._open.data.numel():
            self._open = self.reserve(max(nbytes, self.BLOCK))
        return self._open.take(nbytes, align)


def round_up(n: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `n`."""
    return -(-n // unit) * unit
