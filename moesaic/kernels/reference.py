"""The oracle: every operation in plain torch, on any device and in any floating dtype, for tests and as last fallback.

Other backends offer the same functions with the same arguments and are compared with these. Sums and softmaxes run in
fp32 whatever the dtype. Nothing here promises the same bits for different batch sizes: torch's products do not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels import reference_attention
from moesaic.kernels.reference_attention import AttentionPlan, write_kv
from moesaic.kernels.reference_norm import add_layer_norm, add_rms_norm, embed, gather_rows, layer_norm, rms_norm
from moesaic.kernels.reference_router import route
from moesaic.kernels.registry import Case

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "apply_rope",
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


def rope_table(positions: Tensor, inverse: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines as `apply_rope` takes them.

    Args:
        positions: `[T]` int64.
        inverse: `[D / 2]` fp32, the angle that a position turns each pair by.
        factor: of both.

    Returns:
        cos, sin: `[T, 1, D]` fp32; the first half of the sines is negated.
    """
    angles = positions[:, None].float() * inverse  # [T, D / 2]
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each half of a head against the other.

    Args:
        x: `[T, heads, D]`.
        cos, sin: `[T, 1, D]` fp32; the first half of `sin` carries the minus sign, so that one roll does both halves.

    Returns:
        `[T, heads, D]` in x's dtype.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def prepare_qkv(
    qkv: Tensor,
    num_heads: int,
    num_kv_heads: int,
    table: tuple[Tensor, Tensor],
    slots: Tensor,
    cache: Any,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    clip: float | None = None,
) -> Tensor:
    """norm → clip → rotate → write keys and values to the cache.

    Args:
        qkv: `[T, (heads + 2 kv_heads) * D]`, queries, keys, values.
        table: of `rope_table`.
        slots: `[T]` int64, where keys and values go.
        cache: the layer's `KVCache`, written.
        q_norm, k_norm: weights of RMS norms, `[D]` for one of each head, or as wide as all heads for one of them
            together; None for none.
        clip: bound of absolute values, after the norm.

    Returns:
        queries `[T, heads, D]`.
    """
    dim = qkv.shape[1] // (num_heads + 2 * num_kv_heads)
    query, key, value = qkv.split((num_heads * dim, num_kv_heads * dim, num_kv_heads * dim), -1)
    if q_norm is not None:
        query = rms_norm(query.unflatten(1, (-1, q_norm.shape[0])), q_norm, eps).flatten(1)
    if k_norm is not None:
        key = rms_norm(key.unflatten(1, (-1, k_norm.shape[0])), k_norm, eps).flatten(1)
    if clip is not None:
        query, key, value = (part.clamp(-clip, clip) for part in (query, key, value))
    query_key = torch.cat((query, key), -1).unflatten(1, (-1, dim))  # they rotate together
    query, key = apply_rope(query_key, *table).split((num_heads, num_kv_heads), 1)
    write_kv(cache.key, cache.value, key, value.unflatten(1, (-1, dim)), slots)
    return query


def plan_attention(batch: Batch, cache: Any, window: int | None) -> AttentionPlan:
    """What `paged_attention` needs to know of a batch, once for all layers with such a cache and window."""
    return reference_attention.plan_attention(batch, cache.key, window)


def paged_attention(query: Tensor, cache: Any, plan: AttentionPlan, scale: float) -> Tensor:
    """Causal attention of queries `[T, heads, D]` to their sequences' cached tokens -> `[T, heads, D]`."""
    return reference_attention.paged_attention(query, cache.key, cache.value, plan, scale)


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
