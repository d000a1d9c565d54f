"""The public raw operations in plain torch, on any device: arguments are checked (moesaic/ops.py), outputs written in
place."""

import torch
from torch import Tensor


def align_blocks(ids: Tensor, num_experts: int, block_size: int, sorted_ids: Tensor, experts: Tensor) -> int:
    """Sort choices by expert, each expert's padded to whole blocks.

    Args:
        ids: `[n]` integers in [0, num_experts).
        sorted_ids: int32, filled with n and with the sorted choices.
        experts: int32, filled with the expert of each block, and 0.

    Returns:
        How many places are used, a multiple of block_size.
    """
    counts = torch.bincount(ids, minlength=num_experts)
    blocks = (counts + block_size - 1) // block_size
    starts = (blocks.cumsum(0) - blocks) * block_size  # of each expert's choices, padded
    order = ids.argsort(stable=True)
    rank = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[ids[order]]
    sorted_ids.fill_(len(ids))
    sorted_ids[starts[ids[order]] + rank] = order.to(sorted_ids.dtype)
    per_block = torch.repeat_interleave(torch.arange(num_experts, device=ids.device), blocks)
    experts.zero_()
    experts[: len(per_block)] = per_block.to(experts.dtype)
    return len(per_block) * block_size


def wna16_gemm(
    input: Tensor,
    output: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    choice_weights: Tensor | None,
    sorted_ids: Tensor,
    experts: Tensor,
    top_k: int,
    block_size: int,
    bits: int,
) -> None:
    """`output[i] = input[i // top_k] @ weight.T` in fp32, for the choices i in each block and its expert.

    Args:
        input: `[M, K]`.
        output: `[M * top_k, N]`, zeroed first.
        sorted_ids: `[blocks * block_size]` int64; what is not in [0, M * top_k) is padding.
        experts: one a block; -1 for none.
    """
    output.zero_()
    for expert in experts.unique().tolist():
        if expert < 0:
            continue
        choices = sorted_ids.view(-1, block_size)[experts == expert].flatten()
        choices = choices[(choices >= 0) & (choices < len(output))]
        weight = dequantise(codes[expert], scales[expert], None if zeros is None else zeros[expert], bits)
        product = input[choices // top_k].float() @ weight.T
        if choice_weights is not None:
            product *= choice_weights.flatten()[choices, None]
        output[choices] = product.to(output.dtype)


def dequantise(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """`(code - zero) * scale`, one expert's `[N, K]` in fp32; without zeros they are half the range of codes."""
    values = unpack(codes, bits, 1).float()  # [N, K]
    group = values.shape[1] // scales.shape[1]
    offset = unpack(zeros, bits, 0).float().repeat_interleave(group, 1) if zeros is not None else 2.0 ** (bits - 1)
    return (values - offset) * scales.float().repeat_interleave(group, 1)


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Codes of bytes that hold 8 / bits of them along `dim`, the first in the lowest bits."""
    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], dim + 1).flatten(dim, dim + 1)
