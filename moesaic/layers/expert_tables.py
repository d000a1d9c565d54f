"""Which blocks each sequence has with each expert that keeps keys and values of its own: plain ints."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moesaic.core.errors import MoesaicError
from moesaic.layers.kv_cache import KVCache, TiledCache


class BlockSource(Protocol):
    """Blocks as numbers, with one owner each; the scheduler's BlockPool is such a source."""

    @property
    def num_free(self) -> int: ...

    def allocate(self, count: int) -> list[int]: ...

    def release(self, blocks: list[int]) -> None: ...


@dataclass
class SharedPages:
    """Where the keys and values of all experts lie.

    Attributes:
        blocks: says which are free.
        cache: of `MoEPagedAttention.cache_spec`, with as many blocks.
    """

    blocks: BlockSource
    cache: KVCache | TiledCache


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
