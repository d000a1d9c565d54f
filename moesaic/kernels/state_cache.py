"""Recurrent state: what a layer keeps of a whole sequence, whatever its length, in slots.

Contract: a sequence owns one slot, the same in all layers. A kernel continues from what lies there, or from zero where
the sequence's first position in the step is 0, so that slots need no clearing; it writes only the slots of the step's
sequences. Everything is fp32, and computed token by token, so that no chunking changes a bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moesaic.kernels.layouts import STATE_COLUMNS, matrix_state

__all__ = ["STATE_COLUMNS", "StateCache", "StateSpec", "in_blocks", "matrix_state"]


def in_blocks(matrix: Tensor) -> Tensor:
    """`[..., K, V]` -> `[..., blocks, K, 32]`: blocks of columns, zeros where the last one is not full."""
    blocks = -(-matrix.shape[-1] // STATE_COLUMNS)
    padded = torch.nn.functional.pad(matrix, (0, blocks * STATE_COLUMNS - matrix.shape[-1]))
    return padded.unflatten(-1, (blocks, STATE_COLUMNS)).movedim(-2, -3).contiguous()


@dataclass(frozen=True)
class StateSpec:
    """What one layer keeps of each sequence.

    Attributes:
        parts: name -> shape of fp32 numbers, such as {"conv": (channels, width - 1), "delta": (heads, K, V)}.
    """

    parts: Mapping[str, tuple[int, ...]]

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one sequence's state in this layer."""
        return 4 * sum(math.prod(shape) for shape in self.parts.values())

    def allocate(self, num_slots: int, device: torch.device | str = "cpu") -> "StateCache":
        """Slots that hold anything. On a CPU, memory is committed as slots are first written."""
        if torch.device(device).type != "cpu":
            return StateCache({n: torch.zeros(num_slots, *s, device=device) for n, s in self.parts.items()})
        # numpy's zeros are untouched pages of the system
        return StateCache({n: torch.from_numpy(np.zeros((num_slots, *s), np.float32)) for n, s in self.parts.items()})


@dataclass
class StateCache:
    """One layer's states of all sequences.

    Attributes:
        parts: name -> `[slots, ...]` fp32.
    """

    parts: dict[str, Tensor]

    def copy(self, source: int, target: int) -> None:
        """Slot `target` becomes a copy of slot `source`."""
        for part in self.parts.values():
            part[target] = part[source]

    def fill_(self, value: float) -> None:
        """Every number becomes this; for tests."""
        for part in self.parts.values():
            part.fill_(value)
