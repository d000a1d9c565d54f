"""Rotary positions as a layer of its own, for hand-written models."""

from torch import Tensor

from moesaic.layers.base import Layer
from moesaic.layers.context import current_construction, find_running
from moesaic.layers.rope import shared_frequencies
from moesaic.models.spec import RopeSpec


class RotaryEmbedding(Layer):
    """Turns pairs of queries' and keys' numbers by their positions' angles (Su et al. 2021, section 3.2.2).

    Args:
        head_size: of queries and keys.
        spec: frequencies, and which numbers of a head are turned.
    """

    def __init__(self, head_size: int, spec: RopeSpec) -> None:
        super().__init__()
        ctx = current_construction().ctx
        self.head_size = head_size
        self.interleaved = spec.interleaved
        self.inverse_frequencies, self.factor = shared_frequencies(spec, spec.dim or head_size, ctx.device)
        self._rope_table, self._rotate = ctx.kernel("rope_table"), ctx.kernel("rotate")

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `[T, heads * D]` and keys `[T, kv_heads * D]` (or with heads apart), turned.

        Args:
            positions: `[T]` int64. Those that the model's forward was given share one table in all layers.
        """
        running = find_running()
        if running is not None and positions is running.step.batch.positions:
            table = running.step.rope(self._rope_table, self.inverse_frequencies, self.factor)
        else:
            table = self._rope_table(positions, self.inverse_frequencies, self.factor)
        return self._turned(query, table), self._turned(key, table)

    def _turned(self, x: Tensor, table: Tensor) -> Tensor:
        heads = x.view(x.shape[0], -1, self.head_size)
        out: Tensor = self._rotate(heads, table, 0, self.interleaved)
        return out.view(x.shape)


def get_rope(
    head_size: int,
    rotary_dim: int | None = None,
    base: float = 10000.0,
    is_neox_style: bool = True,
) -> RotaryEmbedding:
    """Plain rotary positions; for scaled ones make a RotaryEmbedding of `hf_config.rope(head_size)`.

    Args:
        rotary_dim: how many of a head's numbers turn, from the first on; None for all.
        is_neox_style: halves of these are turned against each other; else neighbours.
    """
    dim = None if rotary_dim == head_size else rotary_dim
    return RotaryEmbedding(head_size, RopeSpec(theta=base, dim=dim, interleaved=not is_neox_style))
