"""Which block holds which prefix. A block's key is a hash chained over all tokens before it, so equal keys
mean equal prefixes (blake2b, 128 bits: a client cannot forge a prefix that another one cached)."""

from array import array
from hashlib import blake2b

ROOT = b"moesaic-prefix-1"


def prefix_root(salt: str, routes: str = "") -> bytes:
    """What chains of keys begin with: sequences share prefixes only among equal salts and equal routes."""
    return blake2b(f"{len(salt)}:{salt}{routes}".encode(), key=ROOT, digest_size=16).digest()


def extend_hashes(hashes: list[bytes], token_ids: list[int], num_blocks: int, block_size: int, root: bytes) -> None:
    """Append to `hashes` (in place) the keys that it lacks of the first `num_blocks` full blocks, chained on `root`."""
    previous = hashes[-1] if hashes else root
    for start in range(len(hashes) * block_size, num_blocks * block_size, block_size):
        tokens = array("q", token_ids[start : start + block_size])
        previous = blake2b(tokens.tobytes(), key=previous, digest_size=16).digest()
        hashes.append(previous)


class PrefixCache:
    """A two-way map between keys and blocks; with `enabled=False` it stays empty."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def holds(self, block: int) -> bool:
        """Whether `block` keeps a prefix that a later prompt may find."""
        return block in self._key_of

    def match(self, hashes: list[bytes]) -> list[int]:
        """The blocks of the longest prefix of `hashes` that is cached."""
        blocks = []
        for key in hashes:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, key: bytes, block: int) -> None:
        """Remember that `block` is computed and holds `key`; a key already known keeps its first block."""
        if self.enabled and key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def evict(self, block: int) -> None:
        """Forget what `block` holds, if anything."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]

    def inconsistencies(self, num_blocks: int) -> list[str]:
        """Where the two directions of the map disagree."""
        wrong = [
            f"the cached key of block {block} leads elsewhere"
            for block, key in self._key_of.items()
            if self._block_of.get(key) != block
        ]
        if len(self._key_of) != len(self._block_of) or any(b >= num_blocks for b in self._key_of):
            wrong.append("prefix cache maps differ in size or leave the pool")
        return wrong
