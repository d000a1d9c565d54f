"""The oracle: every operation in plain torch, on any device and in any floating dtype, for tests and as last fallback.

Other backends offer the same functions with the same arguments and are compared with these. Sums and softmaxes run in
fp32 whatever the dtype. Nothing here promises the same bits for different batch sizes: torch's products do not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.kernels.reference_attention import (
    paged_attention,
    plan_attention,
    prepare_qkv,
    rope_table,
    rotate,
    write_kv,
)
from moesaic.kernels.reference_norm import add_layer_norm, add_rms_norm, embed, gather_rows, layer_norm, rms_norm
from moesaic.kernels.reference_router import route
from moesaic.kernels.registry import Case

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "combine",
    "embed",
    "expert_outputs",
    "fused_moe",
    "gated_linear",
    "gather_rows",
    "layer_norm",
    "linear",
    "paged_attention",
    "plan_attention",
    "prepare_qkv",
    "rms_norm",
    "rope_table",
    "rotate",
    "route",
    "silu_and_mul",
    "supports",
    "write_kv",
]

NAME = "reference"


def supports(case: Case) -> str | None:
    """Why `case` cannot be served: never, this is the last fallback."""
    return None


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`(x @ matrix.T + bias) * scale`: `[T, K]`, `[N, K]`, `[N]` -> `[T, N]`."""
    out = F.linear(x, matrix, bias)
    return out if scale == 1.0 else out * scale


def gated_linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None, activation: str = "silu") -> Tensor:
    """`activation(gate(x)) * up(x)` where the matrix `[2I, K]` is gate's rows, then up's: `[T, K]` -> `[T, I]`."""
    assert activation == "silu"
    return silu_and_mul(F.linear(x, matrix, bias))


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(gate) * up` where a row is gate, then up: `[..., 2I]` -> `[..., I]`."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def fused_moe(hidden: Tensor, ids: Tensor, weights: Tensor, experts: Any, activation: str = "silu") -> Tensor:
    """The weighted sum of what each token's chosen experts make of it: `[T, H]` -> `[T, H]`.

    Args:
        ids, weights: `[T, k]`, from `route`.
        experts: their pages, with `gate_up`, `down` and `slot_of` as `expert_outputs` takes them.
    """
    assert activation == "silu"
    return combine(expert_outputs(hidden, ids, experts.gate_up, experts.down, experts.slot_of), weights)


def expert_outputs(hidden: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor, slot_of: Tensor) -> Tensor:
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
