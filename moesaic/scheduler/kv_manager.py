"""The blocks and the state slot of each sequence: found in the prefix cache, shared with a parent, grown, committed,
freed."""

from collections.abc import Iterable

from moesaic.core.request import Sequence
from moesaic.core.routing import RoutesKey
from moesaic.scheduler.block_pool import BlockPool
from moesaic.scheduler.prefix_cache import PrefixCache, extend_hashes, prefix_root
from moesaic.scheduler.state_pool import StatePool


class KVManager:
    """Keeps `seq.block_ids`, `seq.block_hashes`, `seq.state_slot` and, on admission, `seq.num_computed`.

    Attributes:
        states: the slots of recurrent state; None for models that have none.
        routes: what of the server decides over routes, as keys of cached prefixes tell it.
        whole_prompts: a sequence's tokens are computed in one step when it starts, on nothing that others computed.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool,
        states: StatePool | None = None,
        whole_prompts: bool = False,
        share_prompts: bool = True,
    ) -> None:
        self.block_size = block_size
        self.whole_prompts = whole_prompts
        self._share = share_prompts and not whole_prompts
        self.states = states
        self.routes = RoutesKey()
        self.cache = PrefixCache(enable_prefix_caching)
        self.pool = BlockPool(num_blocks, self.cache)

    @property
    def shares_prompts(self) -> bool:
        """Whether a sequence may begin on what another one computed."""
        return self._share and (self.states is None or self.states.enabled)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, seq: Sequence) -> list[int]:
        """Blocks that already hold the beginning of a waiting sequence: its parent's, or cached ones; with recurrent
        layers, as far as there is a state to go on from.

        At least one token is left to compute, since its logits are needed. Nothing changes hands yet.
        """
        if not self.shares_prompts:
            return []
        blocks = self._find_blocks(seq)
        if self.states is None or not blocks:
            return blocks
        self._extend_hashes(seq, len(blocks))
        return blocks[: self.states.longest(seq.block_hashes[: len(blocks)])]

    def _find_blocks(self, seq: Sequence) -> list[int]:
        usable = (len(seq.token_ids) - 1) // self.block_size
        parent = seq.parent
        if parent is not None and parent.block_ids:
            shared = min((seq.prompt_len - 1) // self.block_size, parent.num_computed // self.block_size)
            return parent.block_ids[:shared]
        params = seq.request.params
        if not self.cache.enabled or params.prompt_logprobs is not None or params.return_routed_experts:
            return []
        self._extend_hashes(seq, usable)
        return self.cache.match(seq.block_hashes[:usable])

    def chunk(self, seq: Sequence, start: int, budget: int) -> int:
        """How many tokens a sequence may compute from `start` on: up to its length, the budget, and the next position
        at which its state is saved; or all of them, where prompts are not divided."""
        if self.whole_prompts:
            return len(seq.token_ids) - start
        num_tokens = min(len(seq.token_ids) - start, budget)
        if self.states is not None and self.states.enabled:
            return min(num_tokens, self.states.tokens_to_boundary(start, seq.prompt_len))
        return num_tokens

    def room_for(self, seq: Sequence, prefix: list[int], num_tokens: int) -> bool:
        """Whether the blocks for `num_tokens` tokens after `prefix` are free, and a slot for the state."""
        if self.states is not None and not self.states.num_available:
            return False
        total = self.blocks_for(len(prefix) * self.block_size + num_tokens)
        taken_from_free = sum(1 for block in prefix if self.pool.is_free(block))
        return total - len(prefix) + taken_from_free <= self.pool.num_free

    def admit(self, seq: Sequence, prefix: list[int]) -> None:
        """Start a waiting sequence on the blocks that `find_prefix` named."""
        self.pool.share(prefix)
        seq.block_ids = list(prefix)
        seq.num_computed = len(prefix) * self.block_size
        seq.num_committed = len(prefix)
        if self.states is not None:
            self.states.start(seq, seq.block_hashes[len(prefix) - 1] if prefix else None)

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

    def save_state(self, seq: Sequence, position: int) -> None:
        """Have the state after this step saved if the step takes the sequence to a `position` where that is done."""
        if self.states is not None and self.states.is_boundary(position, seq.prompt_len):
            self._extend_hashes(seq, position // self.block_size)
            self.states.save(seq, seq.block_hashes[position // self.block_size - 1])

    def commit(self, seq: Sequence) -> None:
        """Offer the blocks that are now full and computed, and the state that was saved, to later prompts."""
        if self.states is not None:
            self.states.settle(seq, computed=True)
        full = seq.num_computed // self.block_size
        if not self.cache.enabled or full <= seq.num_committed:
            return
        self._extend_hashes(seq, full)
        for i in range(seq.num_committed, full):
            self.cache.insert(seq.block_hashes[i], seq.block_ids[i])
        seq.num_committed = full

    def discard(self, seq: Sequence) -> None:
        """The step of a sequence failed: offer nothing of what it was to compute."""
        if self.states is not None:
            self.states.settle(seq, computed=False)

    def _extend_hashes(self, seq: Sequence, num_blocks: int) -> None:
        if len(seq.block_hashes) < num_blocks:
            root = prefix_root(seq.request.cache_salt, self.routes.of(seq.request.routing))
            extend_hashes(seq.block_hashes, seq.token_ids, num_blocks, self.block_size, root)

    def free(self, seq: Sequence) -> None:
        """Give back every block of a sequence; what it cached can still be found until it is overwritten."""
        self.pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_computed = seq.num_committed = 0
        if self.states is not None:
            self.states.release(seq)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Prove that reference counts add up to the block tables of `sequences`, and that each state slot is in one
        place; raises MoesaicError."""
        sequences = list(sequences)
        if self.states is not None:
            self.states.check_integrity(sequences)
        self.pool.check_integrity(seq.block_ids for seq in sequences)
