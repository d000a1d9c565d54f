"""The oracle's layers with a state of fixed size for each sequence, token by token, in plain torch.

Each takes the step's batch, and the states of all slots `[slots, ...]` fp32, of which it reads and writes those of the
batch's sequences: a sequence whose first position is 0 begins with zeros, whatever its slot holds.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.core.batch import Batch


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
