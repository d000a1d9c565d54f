"""The weights of one layer's experts: pages in slots, and the table that says which expert lies where."""

import torch

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.models.spec import MoESpec


class ExpertPages(Layer):
    """Experts' weights as kernels read them; a slot for every expert yet, expert e in slot e.

    Attributes:
        gate_up: `[slots, 2I, H]`, gate's rows over up's.
        down: `[slots, H, I]`.
        slot_of: `[E]` int32, the slot of each logical expert.
    """

    slot_of: torch.Tensor

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        num_slots, size = spec.num_experts, spec.intermediate_size
        self.gate_up = ctx.parameter(num_slots, 2 * size, hidden_size)
        self.down = ctx.parameter(num_slots, hidden_size, size)
        self.register_buffer("slot_of", torch.arange(spec.num_experts, device=ctx.device, dtype=torch.int32))

    def named_views(self) -> NamedViews:
        """(`{expert}.gate.weight`, view of its page), and so on, for every resident expert."""
        size = self.down.shape[2]
        gate_up, down = self.gate_up.data, self.down.data
        for expert, slot in enumerate(self.slot_of.tolist()):
            yield f"{expert}.gate.weight", gate_up[slot, :size]
            yield f"{expert}.up.weight", gate_up[slot, size:]
            yield f"{expert}.down.weight", down[slot]
