"""Slots of recurrent state as numbers: one for each running sequence, the others for checkpoints.

A layer with recurrent state keeps one state of a sequence, that after its last token, so a prefix can be taken up only
where a copy of the state was made. Copies, the checkpoints, are made at absolute multiples of an interval and at the
last block boundary in the prompt. No chunk crosses such a position, so the state after the chunk is the checkpoint.
"""

from collections import OrderedDict
from collections.abc import Iterable

from moesaic.core.errors import MoesaicError
from moesaic.core.request import Sequence


class StatePool:
    """Slots 0 .. num_slots - 1. A slot is free, holds a checkpoint, or is a running sequence's.

    Checkpoints are forgotten, the least recently used first, when a slot is needed and none is free.

    Args:
        interval: tokens between checkpoints, a multiple of block_size.
        enabled: whether there are checkpoints.

    Attributes:
        restores, saves: copies (source, target) that the next plan must make before and after its step, in order.
    """

    def __init__(self, num_slots: int, interval: int, block_size: int, enabled: bool) -> None:
        self.num_slots = num_slots
        self.interval = interval
        self.block_size = block_size
        self.enabled = enabled
        self.restores: list[tuple[int, int]] = []
        self.saves: list[tuple[int, int]] = []
        self._free = list(range(num_slots))[::-1]
        self._checkpoints: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._pending: dict[int, tuple[bytes, int]] = {}  # by sequence: saved after this step, for others to find later

    @property
    def num_available(self) -> int:
        """Slots that a sequence could have now."""
        return len(self._free) + len(self._checkpoints)

    @property
    def num_checkpoints(self) -> int:
        return len(self._checkpoints)

    @property
    def num_held(self) -> int:
        """Slots of running sequences."""
        return self.num_slots - self.num_available - len(self._pending)

    # ---------------------------------------------------------------- where states are saved

    def tokens_to_boundary(self, start: int, prompt_len: int) -> int:
        """How many tokens a chunk that begins at `start` may have at most."""
        boundary = (start // self.interval + 1) * self.interval
        end = self._prompt_end(prompt_len)
        return (end if start < end < boundary else boundary) - start

    def is_boundary(self, position: int, prompt_len: int) -> bool:
        """Whether the state before the token at `position` is saved."""
        if not self.enabled or position == 0:
            return False
        return position % self.interval == 0 or position == self._prompt_end(prompt_len)

    def _prompt_end(self, prompt_len: int) -> int:
        """The last block boundary from which the same prompt could be taken up: a token is left to compute."""
        return (prompt_len - 1) // self.block_size * self.block_size

    # ---------------------------------------------------------------- slots come and go

    def longest(self, hashes: list[bytes]) -> int:
        """The number of blocks, at most len(hashes), after which there is a checkpoint; 0 if there is none."""
        if not self._checkpoints:
            return 0
        return next((n for n in range(len(hashes), 0, -1) if hashes[n - 1] in self._checkpoints), 0)

    def start(self, seq: Sequence, key: bytes | None) -> None:
        """Give a sequence a slot with the state of checkpoint `key` in it; the caller has checked `num_available`."""
        if key is None:
            seq.state_slot = self._take()
            return
        self._checkpoints.move_to_end(key)
        source = self._checkpoints[key]
        seq.state_slot = self._take()
        if seq.state_slot != source:  # else there was no other slot, and the checkpoint becomes the sequence's own
            self.restores.append((source, seq.state_slot))

    def save(self, seq: Sequence, key: bytes) -> None:
        """Keep the state that the sequence has after this step, if there is a slot for it and no other has the same."""
        if key in self._checkpoints:
            self._checkpoints.move_to_end(key)
        elif self.num_available and all(key != other for other, _ in self._pending.values()):
            slot = self._take()
            self._pending[seq.seq_id] = (key, slot)
            self.saves.append((seq.state_slot, slot))

    def settle(self, seq: Sequence, computed: bool) -> None:
        """The step is over: what was saved of a sequence can be found from now on, unless its step failed."""
        key, slot = self._pending.pop(seq.seq_id, (b"", -1))
        if computed and key:
            self._checkpoints[key] = slot
        elif key:
            self._free.append(slot)

    def release(self, seq: Sequence) -> None:
        """Take a sequence's slot back."""
        if seq.state_slot >= 0:
            self._free.append(seq.state_slot)
            seq.state_slot = -1

    def take_copies(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The copies before and after the step that is planned; they are the plan's from now on."""
        copies = self.restores, self.saves
        self.restores, self.saves = [], []
        return copies

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        return self._checkpoints.popitem(last=False)[1]

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Prove that each slot is in one place: free, a checkpoint, or one sequence's.

        Raises:
            MoesaicError: naming slots that are in none or several, or copies that no plan has taken.
        """
        held = [seq.state_slot for seq in sequences if seq.state_slot >= 0]
        saved = [slot for _, slot in self._pending.values()]
        places = sorted([*self._free, *self._checkpoints.values(), *saved, *held])
        if places != list(range(self.num_slots)):
            raise MoesaicError(
                f"state slots are inconsistent: free {self._free}, checkpoints {list(self._checkpoints.values())}, "
                f"saved {saved}, held by sequences {held}, of {self.num_slots}"
            )
        if self._pending or self.restores or self.saves:
            raise MoesaicError(f"states wait to be copied between steps: {self.restores} {self.saves} {self._pending}")
