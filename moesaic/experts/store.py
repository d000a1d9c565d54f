"""The weights of one layer's experts: pages in slots, and the table that says which expert lies where."""

from typing import Any

import torch

from moesaic.kernels.cpu.arena import PAGE, Arena, round_up
from moesaic.kernels.cpu.packed import PackedMatrix, packed_bytes
from moesaic.layers.base import BuildContext, Layer, NamedViews, gate_and_up, rows_of
from moesaic.models.spec import MoESpec


class ExpertPages(Layer):
    """Experts' weights as kernels read them; a slot for every expert yet, expert e in slot e.

    Attributes:
        gate_up: one gated matrix `[2I, H]` a slot (in the reference backend, one tensor `[slots, 2I, H]`).
        down: one matrix `[H, I]` a slot (or a tensor `[slots, H, I]`).
        slot_of: `[E]` int32, the slot of each logical expert.
    """

    gate_up: Any
    down: Any
    slot_of: torch.Tensor

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        shapes = (2 * spec.intermediate_size, hidden_size), (hidden_size, spec.intermediate_size)
        if ctx.backends["matrices"] == "cpu":
            self.gate_up, self.down = _packed_pages(ctx, spec.num_experts, *shapes)
        else:
            self.gate_up, self.down = (ctx.stacked(spec.num_experts, *shape) for shape in shapes)
        self.register_buffer("slot_of", torch.arange(spec.num_experts, device=ctx.device, dtype=torch.int32))

    def named_views(self) -> NamedViews:
        """(`{expert}.gate.weight`, where its page is filled), and so on, for every resident expert."""
        for expert, slot in enumerate(self.slot_of.tolist()):
            down = self.down[slot]
            gate, up = gate_and_up(self.gate_up[slot])
            yield f"{expert}.gate.weight", gate
            yield f"{expert}.up.weight", up
            yield f"{expert}.down.weight", rows_of(down, 0, down.shape[0])


def _packed_pages(
    ctx: BuildContext, num_slots: int, gate_up: tuple[int, int], down: tuple[int, int]
) -> tuple[list[PackedMatrix], list[PackedMatrix]]:
    """Pages of experts in one arena: each contiguous, gate and up before down, at a multiple of 4 KiB."""
    formats = [(ctx.format_of(f"{e}.gate.weight"), ctx.format_of(f"{e}.down.weight")) for e in range(num_slots)]
    sizes = [
        (round_up(packed_bytes(*gate_up, first, gated=True), 64), packed_bytes(*down, second))
        for first, second in formats
    ]
    arena = Arena(sum(round_up(sum(size), PAGE) for size in sizes))
    pages: tuple[list[PackedMatrix], list[PackedMatrix]] = ([], [])
    for (first, second), size in zip(formats, sizes, strict=True):
        page = arena.take(sum(size), align=PAGE)
        pages[0].append(PackedMatrix(*gate_up, first, True, page[: packed_bytes(*gate_up, first, gated=True)]))
        pages[1].append(PackedMatrix(*down, second, False, page[size[0] :]))
    return pages
