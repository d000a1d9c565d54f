"""The oracle of products with one matrix of each token's chosen experts, in plain torch.

Numbers of a token's choices lie in groups, `[N / group, k, group]`: the heads of all choices that share a key are
neighbours, as attention wants them.
"""

import torch
from torch import Tensor

from moesaic.kernels.reference_moe import Experts, by_slot, combine, linear


def spread_linear(x: Tensor, ids: Tensor, experts: Experts, group: int) -> Tensor:
    """Each chosen expert's first matrix (`gate_up`, ungated) times the token.

    Args:
        x: `[T, K]`.
        ids: `[T, k]` int32; a choice that is negative or whose expert has no slot gives zeros.
        group: numbers of one choice that lie together.

    Returns:
        `[T, N / group, k, group]` in x's dtype.
    """
    (num_tokens, k), size = ids.shape, experts.gate_up[0].shape[0]
    out = x.new_zeros(num_tokens * k, size)
    for slot, pairs in by_slot(ids, experts.slot_of):
        rows = x.index_select(0, pairs.div(k, rounding_mode="floor"))
        out.index_copy_(0, pairs, linear(rows, experts.gate_up[slot]))
    return out.view(num_tokens, k, size // group, group).transpose(1, 2).contiguous()


def gather_linear(x: Tensor, ids: Tensor, weights: Tensor, experts: Experts) -> Tensor:
    """Each chosen expert's second matrix (`down`) times the choice's own numbers, summed with weights in k order.

    Args:
        x: `[T, K / group, k, group]`.
        ids: `[T, k]` int32; a choice that is negative or whose expert has no slot is left out.
        weights: `[T, k]` fp32.

    Returns:
        `[T, N]` in x's dtype.
    """
    (num_tokens, k), (size, inputs) = ids.shape, experts.down[0].shape
    rows = x.transpose(1, 2).reshape(num_tokens * k, inputs)
    outputs = x.new_zeros(num_tokens * k, size)
    for slot, pairs in by_slot(ids, experts.slot_of):
        outputs.index_copy_(0, pairs, linear(rows.index_select(0, pairs), experts.down[slot]))
    return combine(outputs.view(num_tokens, k, size), weights.to(torch.float32))
