"""The oracle's layers with a state of fixed size for each sequence, token by token, in plain torch.

Each takes the step's batch, and the states of all slots `[slots, ...]` fp32, of which it reads and writes those of the
batch's sequences: a sequence whose first position is 0 begins with zeros, whatever its slot holds.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.state_cache import in_blocks


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, batch: Batch, silu: bool = True
) -> Tensor:
    """`act(bias + sum over k of weight[k] * x[t - width + 1 + k])`, each channel by itself, over a sequence.

    Args:
        x: `[T, C]`; perhaps some columns of a wider tensor.
        weight: `[width, C]`.
        bias: `[C]`, or None.
        state: `[slots, width - 1, C]`, each sequence's last inputs, oldest first; written.
        silu: whether act is silu; else there is none.

    Returns:
        `[T, C]` in x's dtype.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows, slot, before in _sequences(batch, state):
        inputs = torch.cat([before, x[rows].float()])
        windows = inputs.unfold(0, weight.shape[0], 1)  # [n, C, width]
        sums = torch.einsum("ncw,wc->nc", windows, weight.float())
        if bias is not None:
            sums = sums + bias.float()
        out[rows] = (F.silu(sums) if silu else sums).to(x.dtype)
        state[slot] = inputs[inputs.shape[0] - state.shape[1] :]
    return out


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    rate: Tensor,
    bias: Tensor,
    state: Tensor,
    batch: Batch,
    eps: float = 1e-6,
) -> Tensor:
    """The gated delta rule (Yang et al. 2024), a head's state S being a matrix `[K, V]`.

    With k and q divided by their lengths, q by sqrt(K) too, b = sigmoid(beta), d = exp(-rate softplus(decay + bias)):
    `S = d S; S += k (b (v - Sᵀk))ᵀ; out = Sᵀq`.

    Args:
        query, key: `[T, G, K]`; each serves H / G neighbours. All may be columns of wider tensors.
        value: `[T, H, V]`.
        decay: `[T, H, 1]`, or `[T, H, K]` for one a channel of the keys (Kimi Linear, 2025).
        beta: `[T, H, 1]`.
        rate: `[H]`.
        bias: `[H]` or `[H * K]`, as many as decay has.
        state: `[slots, *matrix_state(H, K, V)]`; written.
        eps: added to the squared length of k and q.

    Returns:
        `[T, H, V]` in value's dtype.
    """
    heads, key_dim, value_dim = value.shape[1], key.shape[2], value.shape[2]
    q, k = (_unit(x.float(), eps).repeat_interleave(heads // key.shape[1], 1) for x in (query, key))
    q = q * key_dim**-0.5
    v, b = value.float(), beta.float().sigmoid()
    d = (-rate.float().view(-1, 1) * F.softplus(decay.float() + bias.float().view(heads, -1))).exp()
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    for rows, slot, before in _sequences(batch, state):
        s = _matrix(before, value_dim)
        for t in range(rows.start, rows.stop):
            s = s * d[t].unsqueeze(-1)
            delta = b[t] * (v[t] - torch.einsum("hkv,hk->hv", s, k[t]))
            s = s + torch.einsum("hk,hv->hkv", k[t], delta)
            out[t] = torch.einsum("hkv,hk->hv", s, q[t]).to(out.dtype)
        _keep(state, slot, s)
    return out


def ssd_scan(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    step: Tensor,
    rate: Tensor,
    bias: Tensor,
    skip: Tensor,
    state: Tensor,
    batch: Batch,
    limits: tuple[float, float] = (0.0, float("inf")),
) -> Tensor:
    """Mamba 2's scan (Dao and Gu 2024), a head's state S being a matrix `[N, P]`.

    With dt = softplus(step + bias), held between the limits: `S = exp(-rate dt) S + B (dt x)ᵀ; out = SᵀC + skip x`.

    Args:
        x: `[T, H, P]`. All may be columns of wider tensors.
        b, c: `[T, G, N]`; each serves H / G neighbours.
        step: `[T, H, 1]`.
        rate, bias, skip: `[H]`.
        state: `[slots, *matrix_state(H, N, P)]`; written.

    Returns:
        `[T, H, P]` in x's dtype.
    """
    heads = x.shape[1]
    keys, queries = (part.float().repeat_interleave(heads // b.shape[1], 1) for part in (b, c))
    dt = F.softplus(step.float() + bias.float().view(-1, 1)).clamp(*limits)  # [T, H, 1]
    taken, decay = dt * x.float(), (-rate.float().view(-1, 1) * dt).exp()
    read = _outer_scan(queries, keys, taken, decay.unsqueeze(-1), state, batch)
    return (read + skip.float().view(-1, 1) * x.float()).to(x.dtype)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor, batch: Batch) -> Tensor:
    """Linear attention whose state fades by a fixed share in each head (lightning attention, Qin et al. 2024).

    `S = decay S + k vᵀ; out = Sᵀq`, a head's state S being a matrix `[K, V]`.

    Args:
        query, key: `[T, G, K]`; each serves H / G neighbours. All may be columns of wider tensors.
        value: `[T, H, V]`.
        decay: `[H]`.
        state: `[slots, *matrix_state(H, K, V)]`; written.

    Returns:
        `[T, H, V]` in value's dtype.
    """
    q, k = (x.float().repeat_interleave(value.shape[1] // key.shape[1], 1) for x in (query, key))
    kept = decay.float().view(1, -1, 1, 1).expand(value.shape[0], -1, -1, -1)
    return _outer_scan(q, k, value.float(), kept, state, batch).to(value.dtype)


def selective_scan(
    x: Tensor,
    step: Tensor,
    b: Tensor,
    c: Tensor,
    gate: Tensor,
    rate: Tensor,
    bias: Tensor,
    skip: Tensor,
    state: Tensor,
    batch: Batch,
) -> Tensor:
    """Mamba's selective scan (Gu and Dao 2023), each channel with a state h of N numbers.

    With dt = softplus(step + bias): `h = exp(-rate dt) h + B dt x; out = (C·h + skip x) silu(gate)`.

    Args:
        x, gate: `[T, D]`, perhaps columns of wider tensors.
        step: `[T, D]`.
        b, c: `[T, N]`.
        rate: `[N, D]`, in blocks of columns (`state_cache.in_blocks`).
        bias, skip: `[D]`.
        state: `[slots, *matrix_state(1, N, D)]`; written.

    Returns:
        `[T, D]` in x's dtype.
    """
    dt, wide = F.softplus(step.float() + bias.float()), x.float()
    sums = torch.empty_like(wide, memory_format=torch.contiguous_format)
    rates = _matrix(rate.float().unsqueeze(0), x.shape[1])[0]  # [N, D]
    for rows, slot, before in _sequences(batch, state):
        h = _matrix(before, x.shape[1])[0]
        for t in range(rows.start, rows.stop):
            h = (-rates * dt[t]).exp() * h + b[t].float().unsqueeze(1) * (dt[t] * wide[t])
            sums[t] = c[t].float() @ h
        _keep(state, slot, h.unsqueeze(0))
    return ((sums + skip.float() * wide) * F.silu(gate.float())).to(x.dtype)


def gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group: int, act: str = "silu", gate_first: bool = False
) -> Tensor:
    """An RMS norm of each `group` neighbours, and a gate: `norm(x) * weight * act(gate)`.

    Args:
        x, gate: `[T, N]`; the gate perhaps columns of a wider tensor.
        weight: `[N]`, or `[group]` for all groups alike.
        act: "silu" or "sigmoid".
        gate_first: `norm(x * act(gate)) * weight`.

    Returns:
        `[T, N]` in x's dtype.
    """
    opened = F.silu(gate.float()) if act == "silu" else gate.float().sigmoid()
    wide = x.float() * opened if gate_first else x.float()
    groups = wide.unflatten(1, (-1, group))
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    normed = (normed * weight.float().view(-1, group)).flatten(1)
    return (normed if gate_first else normed * opened).to(x.dtype)


def _outer_scan(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor, batch: Batch) -> Tensor:
    """`S = decay S + k vᵀ; out = Sᵀq` for `[T, H, ...]` fp32, decay `[T, H, 1, 1]`."""
    out = torch.empty_like(value)
    for rows, slot, before in _sequences(batch, state):
        s = _matrix(before, value.shape[2])
        for t in range(rows.start, rows.stop):
            s = decay[t] * s + torch.einsum("hk,hv->hkv", key[t], value[t])
            out[t] = torch.einsum("hkv,hk->hv", s, query[t])
        _keep(state, slot, s)
    return out


def _unit(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _matrix(state: Tensor, value_dim: int) -> Tensor:
    """One slot's blocks of columns `[H, blocks, K, 32]` as a matrix for each head, `[H, K, V]`."""
    return state.transpose(1, 2).flatten(2)[..., :value_dim]


def _keep(state: Tensor, slot: int, matrix: Tensor) -> None:
    """Write a matrix for each head into the slot, as `_matrix` reads it."""
    state[slot] = in_blocks(matrix)


def _sequences(batch: Batch, state: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Each sequence of a step: its rows, its slot, and the state it begins with."""
    if batch.state_slots is None:
        raise ValueError("the batch says not where its sequences' states lie")
    starts, slots = batch.query_start.tolist(), batch.state_slots.tolist()
    for s, slot in enumerate(slots):
        rows = slice(starts[s], starts[s + 1])
        if rows.start == rows.stop:
            continue
        fresh = int(batch.positions[rows.start]) == 0
        yield rows, slot, torch.zeros_like(state[slot]) if fresh else state[slot].clone()
