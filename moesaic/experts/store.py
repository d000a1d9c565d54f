"""The weights of one layer's experts: pages in slots, and the table that says which expert lies where."""

from typing import Any

import torch

from moesaic.kernels.cpu.arena import PAGE, round_up
from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.cpu.packed import PackedMatrix, packed_bytes
from moesaic.layers.base import BuildContext, Layer, NamedViews, gate_and_up, rows_of
from moesaic.models.spec import MoESpec


class ExpertPages(Layer):
    """Experts' weights as kernels read them; a slot for every expert yet, expert e in slot e.

    Attributes:
        slots: the slot of each logical expert.
        slot_of: the same, `[E]` int32; kernels read it where it lies.
        gate_up, down: plain weights by slot, `[slots, 2I, H]` and `[slots, H, I]`, where such are computed with.
        packed: packed weights by slot, where these are.
    """

    slot_of: torch.Tensor
    gate_up_bias: list[torch.Tensor] | None = None
    down_bias: list[torch.Tensor] | None = None

    def __init__(self, ctx: BuildContext, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        self.gated = spec.gated
        inner = spec.intermediate_size * (2 if spec.gated else 1)
        shapes = (inner, hidden_size), (hidden_size, spec.intermediate_size)
        self.slots = list(range(spec.num_experts))
        slot_of = self.slots + [-1] * spec.identity_experts  # these have no weights, and are added beside the others
        self.register_buffer("slot_of", torch.tensor(slot_of, device=ctx.device, dtype=torch.int32))
        if spec.bias:
            self.gate_up_bias = [ctx.parameter(inner).data for _ in range(spec.num_experts)]
            self.down_bias = [ctx.parameter(hidden_size).data for _ in range(spec.num_experts)]
        self.packed: PackedExperts | None = None
        if ctx.backends["matrices"] == "cpu":
            pages = _packed_pages(ctx, spec.num_experts, *shapes, spec.gated)
            self.packed = PackedExperts(self.slot_of, *pages, self.gate_up_bias, self.down_bias)
        else:
            self.gate_up, self.down = (ctx.stacked(spec.num_experts, *shape) for shape in shapes)

    @property
    def pages(self) -> Any:
        """What the kernel takes: `slot_of`, and weights by slot."""
        return self.packed or self

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of the pages: set aside, and of these filled by weights."""
        if self.packed is None:
            filled = self.gate_up.nbytes + self.down.nbytes
            return filled, filled
        pages = [(up.nbytes, down.nbytes) for up, down in zip(self.packed.gate_up, self.packed.down, strict=True)]
        return sum(round_up(round_up(up, 64) + down, PAGE) for up, down in pages), sum(map(sum, pages))

    def own_weights(self) -> list[Any]:
        biases = (self.gate_up_bias or []) + (self.down_bias or [])
        return [*super().own_weights(), *biases, *(self.packed.gate_up + self.packed.down if self.packed else [])]

    def named_views(self) -> NamedViews:
        """(`{expert}.gate.weight`, where its page is filled), and so on, for every resident expert."""
        pages = self.pages
        for expert, slot in enumerate(self.slots):
            wide = pages.gate_up[slot]
            parts = dict(zip(("gate", "up"), gate_and_up(wide), strict=True)) if self.gated else {}
            for part, view in parts.items() or [("up", rows_of(wide, 0, wide.shape[0]))]:
                yield f"{expert}.{part}.weight", view
            yield f"{expert}.down.weight", rows_of(pages.down[slot], 0, pages.down[slot].shape[0])
            if self.gate_up_bias is not None and self.down_bias is not None:
                bias = self.gate_up_bias[slot]
                halves = zip(("gate", "up"), bias.chunk(2), strict=True) if self.gated else [("up", bias)]
                for part, half in halves:
                    yield f"{expert}.{part}.bias", half
                yield f"{expert}.down.bias", self.down_bias[slot]


def _packed_pages(
    ctx: BuildContext, num_slots: int, gate_up: tuple[int, int], down: tuple[int, int], gated: bool
) -> tuple[list[PackedMatrix], list[PackedMatrix]]:
    """Pages of experts in one arena: each contiguous, gate and up before down, at a multiple of 4 KiB."""
    first_part = "gate" if gated else "up"
    formats = [(ctx.format_of(f"{e}.{first_part}.weight"), ctx.format_of(f"{e}.down.weight")) for e in range(num_slots)]
    sizes = [
        (round_up(packed_bytes(*gate_up, first, gated=gated), 64), packed_bytes(*down, second))
        for first, second in formats
    ]
    arena = ctx.memory.reserve(sum(round_up(sum(size), PAGE) for size in sizes))
    pages: tuple[list[PackedMatrix], list[PackedMatrix]] = ([], [])
    for (first, second), size in zip(formats, sizes, strict=True):
        page = arena.take(sum(size), align=PAGE)
        pages[0].append(PackedMatrix(*gate_up, first, gated, page[: packed_bytes(*gate_up, first, gated=gated)]))
        pages[1].append(PackedMatrix(*down, second, False, page[size[0] :]))
    return pages
