"""The oracle: every operation in plain torch, on any device and in any floating dtype, for tests and as last fallback.

Other backends offer the same functions with the same arguments and are compared with these. Sums and softmaxes run in
fp32 whatever the dtype. Nothing here promises the same bits for different batch sizes: torch's products do not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.kernels.reference_attention import paged_attention, plan_attention, write_kv
from moesaic.kernels.reference_norm import add_layer_norm, add_rms_norm, embed, gather_rows, layer_norm, rms_norm
from moesaic.kernels.reference_router import route
from moesaic.kernels.registry import Case

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "apply_rope",
    "combine",
    "embed",
    "fused_moe",
    "gather_rows",
    "layer_norm",
    "paged_attention",
    "plan_attention",
    "rms_norm",
    "route",
    "silu_and_mul",
    "supports",
    "write_kv",
]

NAME = "reference"


def supports(case: Case) -> str | None:
    """Why `case` cannot be served: never, this is the last fallback."""
    return None


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each half of a head against the other.

    Args:
        x: `[T, heads, D]`.
        cos, sin: `[T, 1, D]` fp32; the first half of `sin` carries the minus sign, so that one roll does both halves.

    Returns:
        `[T, heads, D]` in x's dtype.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(gate) * up` where a row is gate, then up: `[..., 2I]` -> `[..., I]`."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def fused_moe(hidden: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor, slot_of: Tensor) -> Tensor:
    """What each token's chosen experts make of it, before weighting. Touches the chosen experts alone.

    Args:
        hidden: `[T, H]`.
        ids: `[T, k]` int32, logical experts.
        gate_up, down: expert pages `[slots, 2I, H]` and `[slots, H, I]`.
        slot_of: `[E]` int32 page table; the slot where an expert's weights lie.

    Returns:
        `[T, k, H]`.
    """
    num_tokens, k = ids.shape
    slots = slot_of.index_select(0, ids.flatten())  # [T*k]
    if num_tokens == 1:
        return torch.stack([_expert(hidden, gate_up[slot], down[slot]) for slot in slots.tolist()], dim=1)
    # Pairs (token, choice) ordered by expert: each expert's rows lie together, and one product serves them all.
    sorted_slots, order = slots.sort(stable=True)
    rows = hidden.index_select(0, order.div(k, rounding_mode="floor"))  # [T*k, H]
    active, counts = torch.unique_consecutive(sorted_slots, return_counts=True)
    results = torch.empty_like(rows)
    start = 0
    for slot, count in zip(active.tolist(), counts.tolist(), strict=True):
        results[start : start + count] = _expert(rows[start : start + count], gate_up[slot], down[slot])
        start += count
    return torch.empty_like(results).index_copy_(0, order, results).view(num_tokens, k, -1)


def _expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One gated expert: `[n, H]`, `[2I, H]`, `[H, I]` -> `[n, H]`."""
    return F.linear(silu_and_mul(F.linear(x, gate_up)), down)


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    """Each token's weighted sum of its k expert outputs, in k order, accumulated in fp32.

    Args:
        outputs: `[T, k, H]`.
        weights: `[T, k]` fp32.

    Returns:
        `[T, H]` in the dtype of `outputs`.
    """
    total = outputs[:, 0] * weights[:, :1]
    for i in range(1, weights.shape[1]):
        total = torch.addcmul(total, outputs[:, i], weights[:, i : i + 1])
    return total.to(outputs.dtype)
