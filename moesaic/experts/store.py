"""The weights of one layer's experts: pages in slots, and the table that says which expert lies where."""

from typing import Any

import torch

from moesaic.kernels.cpu.arena import PAGE, Arena, round_up
from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.cpu.packed import PackedMatrix, packed_bytes
from moesaic.layers.base import BuildContext, Layer, NamedViews, gate_and_up, rows_of
from moesaic.models.spec import MoESpec


class ExpertPages(Layer):
    """Experts' weights as kernels read them; a slot for every expert yet, expert e in slot e.

    Attributes:
        slot_of: `[E]` int32, the slot of each logical expert; kernels read it where it lies.
        gate_up, down: plain weights by slot, `[slots, 2I, H]` and `[slots, H, I]`, where such are computed with.
        packed: packed weights by slot, where these are.
    """

    slot_of: torch.Tensor
    gate_up_bias: list[torch.Tensor] | None = None
    down_bias: list[torch.Tensor] | None = None

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        shapes = (2 * spec.intermediate_size, hidden_size), (hidden_size, spec.intermediate_size)
        self.register_buffer("slot_of", torch.arange(spec.num_experts, device=ctx.device, dtype=torch.int32))
        self.packed: PackedExperts | None = None
        if ctx.backends["matrices"] == "cpu":
            self.packed = PackedExperts(self.slot_of, *_packed_pages(ctx, spec.num_experts, *shapes))
        else:
            self.gate_up, self.down = (ctx.stacked(spec.num_experts, *shape) for shape in shapes)

    @property
    def pages(self) -> Any:
        """What the kernel takes: `slot_of`, and weights by slot."""
        return self.packed or self

    def own_weights(self) -> list[Any]:
        return [*super().own_weights(), *(self.packed.gate_up + self.packed.down if self.packed else [])]

    def named_views(self) -> NamedViews:
        """(`{expert}.gate.weight`, where its page is filled), and so on, for every resident expert."""
        pages = self.pages
        for expert, slot in enumerate(self.slot_of.tolist()):
            gate, up = gate_and_up(pages.gate_up[slot])
            yield f"{expert}.gate.weight", gate
            yield f"{expert}.up.weight", up
            yield f"{expert}.down.weight", rows_of(pages.down[slot], 0, pages.down[slot].shape[0])


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
