"""Blocks of KV cache as numbers: who holds each, and in what order the free ones are used again."""

from collections import OrderedDict
from collections.abc import Iterable

from moesaic.core.errors import MoesaicError
from moesaic.scheduler.prefix_cache import PrefixCache


class BlockPool:
    """Reference-counted blocks 0 .. num_blocks - 1.

    A free block may still hold a cached prefix; it keeps it until it is handed out again, so the free list
    is an LRU: blocks without a prefix go to its head, those with one to its tail.
    """

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self.cache = cache
        self.ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def is_free(self, block: int) -> bool:
        return block in self._free

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with one reference each; the caller has checked `num_free`."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self.cache.evict(block)
            self.ref_counts[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each block; a free one (a cached prefix) is taken off the free list."""
        for block in blocks:
            if self.ref_counts[block] == 0:
                del self._free[block]
            self.ref_counts[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Drop a reference to each block. The last of a sequence goes first, so that when cached prefixes
        are evicted, their tails go before the heads that other prompts may share."""
        for block in reversed(blocks):
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._free[block] = None
                if not self.cache.holds(block):
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Prove that the reference counts are exactly those of the given block tables.

        Raises:
            MoesaicError: naming the first blocks whose counts, or places in the free list, are wrong.
        """
        expected = [0] * self.num_blocks
        for table in tables:
            for block in table:
                expected[block] += 1
        wrong = [
            f"block {b}: {self.ref_counts[b]} references, {expected[b]} in block tables"
            for b in range(self.num_blocks)
            if self.ref_counts[b] != expected[b]
        ]
        wrong += [
            f"block {b}: {self.ref_counts[b]} references, {'free' if b in self._free else 'not free'}"
            for b in range(self.num_blocks)
            if (self.ref_counts[b] == 0) != (b in self._free)
        ]
        wrong += self.cache.inconsistencies(self.num_blocks)
        if wrong:
            raise MoesaicError("block pool is inconsistent: " + "; ".join(wrong[:5]))
