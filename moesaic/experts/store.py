"""The weights of one layer's experts: pages in slots, and the table that says which expert lies where."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.models.spec import MoESpec


@dataclass
class ExpertPages:
    """Experts' weights as kernels read them.

    Attributes:
        gate_up: `[slots, 2I, H]`, gate's rows over up's.
        down: `[slots, H, I]`.
        slot_of: `[E]` int32, the slot of each logical expert.
    """

    gate_up: Tensor
    down: Tensor
    slot_of: Tensor

    @classmethod
    def all_resident(cls, spec: MoESpec, hidden_size: int, device: torch.device, dtype: torch.dtype) -> "ExpertPages":
        """A slot for every expert, expert e in slot e; unfilled."""
        num, size = spec.num_experts, spec.intermediate_size
        return cls(
            gate_up=torch.empty(num, 2 * size, hidden_size, device=device, dtype=dtype),
            down=torch.empty(num, hidden_size, size, device=device, dtype=dtype),
            slot_of=torch.arange(num, device=device, dtype=torch.int32),
        )

    def named_views(self) -> Iterator[tuple[str, Tensor]]:
        """(`{expert}.gate.weight`, view of its page), and so on, for every resident expert."""
        size = self.down.shape[2]
        for expert, slot in enumerate(self.slot_of.tolist()):
            yield f"{expert}.gate.weight", self.gate_up[slot, :size]
            yield f"{expert}.up.weight", self.gate_up[slot, size:]
            yield f"{expert}.down.weight", self.down[slot]
