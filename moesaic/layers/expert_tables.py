"""Experts that keep keys and values of their own: the pool of blocks that they share, and which blocks each sequence
has with each of them, as plain ints."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from moesaic.core.errors import MoesaicError
from moesaic.kernels.cpu.attention import TiledCache
from moesaic.kernels.kv_cache import KVCacheSpec
from moesaic.kernels.reference_attention import KVCache


class BlockSource(Protocol):
    """Blocks as numbers, with one owner each: `FreeBlocks`, or the scheduler's BlockPool."""

    @property
    def num_free(self) -> int: ...

    def allocate(self, count: int) -> list[int]: ...

    def release(self, blocks: list[int]) -> None: ...


class FreeBlocks:
    """Blocks 0 .. num_blocks - 1, of which all are free at first; the one that was used last is used first again."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks))[::-1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """The caller has checked `num_free`."""
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Blocks that nobody holds any more."""
        self._free += reversed(blocks)


@dataclass
class SharedPages:
    """Where the keys and values of all experts lie.

    Attributes:
        blocks: says which are free.
        cache: of `MoEPagedAttention.cache_spec`, with as many blocks.
    """

    blocks: BlockSource
    cache: KVCache | TiledCache


@dataclass(frozen=True)
class ExpertPagesSpec:
    """The pool of all layers whose experts keep keys and values of one layout, in the accounts of memory.

    The scheduler counts a sequence's tokens in blocks, whoever is to keep them. Where a token has k of E experts, the n
    tokens of b such blocks are k n visits, and experts fill their last blocks in part, so that a layer takes fewer than
    `k b + E` blocks of the pool. With k for each block and E - 1 for each sequence, whatever the scheduler admits
    finds room.

    Attributes:
        kv: the layout.
        per_block: blocks of the pool for each block of the scheduler's.
        per_slot: beside these, for each running sequence.
    """

    kv: KVCacheSpec
    per_block: int
    per_slot: int

    def bytes_per_block(self, block_size: int) -> int:
        """Memory set aside for each block of a sequence."""
        return self.per_block * self.kv.bytes_per_block(block_size)

    def bytes_per_slot(self, block_size: int) -> int:
        """Memory set aside for each running sequence, whatever its length."""
        return self.per_slot * self.kv.bytes_per_block(block_size)

    def allocate(self, num_blocks: int, num_slots: int, block_size: int, device: torch.device | str) -> SharedPages:
        """An empty pool for so many blocks of sequences, and so many sequences."""
        total = num_blocks * self.per_block + num_slots * self.per_slot
        return SharedPages(FreeBlocks(total), self.kv.allocate(total, block_size, device))


class OutOfBlocksError(MoesaicError):
    """The pool has too few free blocks. Nothing was taken: free a sequence, and call again."""


@dataclass
class Held:
    """What a sequence has in the cache of one expert: blocks, in order, and how many tokens are in them."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


Want = tuple[int, int, int]  # an expert, and how many tokens of which sequence are to have room there


class ExpertTables:
    """The block tables of one layer.

    Attributes:
        computed: tokens of each sequence so far, wherever they went.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.computed: dict[int, int] = {}
        self._held: dict[int, dict[int, Held]] = {}  # sequence -> expert -> what it has there

    def held(self, sequence: int, expert: int) -> Held:
        """What a sequence has with an expert; nothing, where it has nothing yet."""
        return self._held.get(sequence, {}).get(expert) or Held()

    def blocks(self) -> dict[tuple[int, int], list[int]]:
        """All blocks that are held, by (sequence, expert)."""
        return {(s, e): list(held.blocks) for s, experts in self._held.items() for e, held in experts.items()}

    def allocate(self, pages: SharedPages, wanted: Sequence[Want]) -> list[list[int]]:
        """Make room for all that is wanted; returns each one's blocks, in order.

        Raises:
            OutOfBlocksError: too few blocks are free; none was taken.
        """
        size = pages.cache.block_size
        missing = [max(0, -(-tokens // size) - len(self.held(s, e).blocks)) for e, tokens, s in wanted]
        free = pages.blocks.num_free
        if sum(missing) > free:
            raise OutOfBlocksError(
                f"{self.name}: {_described(wanted)} take {sum(missing)} more blocks, and {free} are free: free a "
                "sequence, or make the pool larger"
            )
        for (expert, _, sequence), count in zip(wanted, missing, strict=True):
            held = self._held.setdefault(sequence, {}).setdefault(expert, Held())
            held.blocks += pages.blocks.allocate(count)
        return [list(self.held(s, e).blocks) for e, _, s in wanted]

    def free(self, pages: SharedPages, sequence: int) -> None:
        """Give back all blocks of a sequence."""
        for held in self._held.pop(sequence, {}).values():
            pages.blocks.release(held.blocks)
        self.computed.pop(sequence, None)


def _described(wanted: Sequence[Want]) -> str:
    sequences, experts = sorted({s for *_, s in wanted}), sorted({e for e, *_ in wanted})
    return f"{sum(n for _, n, _ in wanted)} tokens of sequences {sequences} with experts {experts}"
