"""The blocks of each sequence: found in the prefix cache, shared with a parent, grown, committed, freed."""

from collections.abc import Iterable

from moesaic.core.request import Sequence
from moesaic.scheduler.block_pool import BlockPool
from moesaic.scheduler.prefix_cache import PrefixCache, extend_hashes


class KVManager:
    """Keeps `seq.block_ids`, `seq.block_hashes` and, on admission, `seq.num_computed`."""

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.cache = PrefixCache(enable_prefix_caching)
        self.pool = BlockPool(num_blocks, self.cache)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, seq: Sequence) -> list[int]:
        """Blocks that already hold the beginning of a waiting sequence: its parent's, or cached ones.

        At least one token is left to compute, since its logits are needed. Nothing changes hands yet.
        """
        usable = (len(seq.token_ids) - 1) // self.block_size
        parent = seq.parent
        if parent is not None and parent.block_ids:
            shared = min((seq.prompt_len - 1) // self.block_size, parent.num_computed // self.block_size)
            return parent.block_ids[:shared]
        if not self.cache.enabled or seq.request.params.prompt_logprobs is not None:
            return []
        self._extend_hashes(seq, usable)
        return self.cache.match(seq.block_hashes[:usable])

    def room_for(self, seq: Sequence, prefix: list[int], num_tokens: int) -> bool:
        """Whether the blocks for `num_tokens` tokens after `prefix` are free."""
        total = self.blocks_for(len(prefix) * self.block_size + num_tokens)
        taken_from_free = sum(1 for block in prefix if self.pool.is_free(block))
        return total - len(prefix) + taken_from_free <= self.pool.num_free

    def admit(self, seq: Sequence, prefix: list[int]) -> None:
        """Start a waiting sequence on the blocks that `find_prefix` named."""
        self.pool.share(prefix)
        seq.block_ids = list(prefix)
        seq.num_computed = len(prefix) * self.block_size
        seq.num_committed = len(prefix)

    def grow(self, seq: Sequence, num_tokens: int) -> list[int] | None:
        """Make room for `num_tokens` more tokens: the new blocks, or None (and no change) if too few are free."""
        needed = seq.num_computed + num_tokens
        if needed <= len(seq.block_ids) * self.block_size:
            return []
        missing = self.blocks_for(needed) - len(seq.block_ids)
        if missing > self.pool.num_free:
            return None
        blocks = self.pool.allocate(missing)
        seq.block_ids += blocks
        return blocks

    def commit(self, seq: Sequence) -> None:
        """Offer the blocks that are now full and computed to later prompts."""
        full = seq.num_computed // self.block_size
        if not self.cache.enabled or full <= seq.num_committed:
            return
        self._extend_hashes(seq, full)
        for i in range(seq.num_committed, full):
            self.cache.insert(seq.block_hashes[i], seq.block_ids[i])
        seq.num_committed = full

    def _extend_hashes(self, seq: Sequence, num_blocks: int) -> None:
        extend_hashes(seq.block_hashes, seq.token_ids, num_blocks, self.block_size, seq.request.cache_salt)

    def free(self, seq: Sequence) -> None:
        """Give back every block of a sequence; what it cached can still be found until it is overwritten."""
        self.pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_computed = seq.num_committed = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Prove that reference counts add up to the block tables of `sequences`; raises MoesaicError."""
        self.pool.check_integrity(seq.block_ids for seq in sequences)
