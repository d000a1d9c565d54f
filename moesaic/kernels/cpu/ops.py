"""The public raw operations in C++. Arguments are those of `kernels.reference_ops`, checked by moesaic/ops.py."""

import ctypes

import torch
from torch import Tensor

from moesaic.kernels.cpu.calls import FLOAT_KINDS, Count, Kernel, pointer


class AlignBlocksArguments(ctypes.Structure):
    """`moesaic_align_blocks_args`."""

    _fields_ = (
        ("rows", Count),
        ("ids", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("sorted", ctypes.c_void_p),
        ("num_sorted", ctypes.c_int64),
        ("block_experts", ctypes.c_void_p),
        ("num_blocks", ctypes.c_int64),
        ("num_padded", ctypes.c_void_p),
    )


class Wna16GemmArguments(ctypes.Structure):
    """`moesaic_wna16_gemm_args`."""

    _fields_ = (
        ("rows", Count),
        ("input", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("choice_weights", ctypes.c_void_p),
        ("sorted", ctypes.c_void_p),
        ("block_experts", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("num_blocks", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("scale_kind", ctypes.c_int32),
    )


_align_blocks = Kernel("align_blocks")
_wna16_gemm = Kernel("wna16_gemm")


def align_blocks(ids: Tensor, num_experts: int, block_size: int, sorted_ids: Tensor, experts: Tensor) -> int:
    """Sort choices by expert, each expert's padded to whole blocks; see `kernels.reference_ops`."""
    ids = ids.to(torch.int32).contiguous()
    rows, used = ctypes.c_int64(len(ids)), ctypes.c_int32()
    _align_blocks(
        AlignBlocksArguments(
            ctypes.pointer(rows),
            pointer(ids, torch.int32),
            num_experts,
            block_size,
            pointer(sorted_ids, torch.int32),
            len(sorted_ids),
            pointer(experts, torch.int32),
            len(experts),
            ctypes.addressof(used),
        )
    )
    return used.value


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
    """`output[i] = input[i // top_k] @ weight.T` in fp32, for the choices i in each block; see `reference_ops`."""
    rows = ctypes.c_int64(len(input))
    # Each under a name of its own: what a struct points to must live until the call returns.
    wide, out, codes, scales = (
        input.float().contiguous(),
        torch.empty(output.shape),
        codes.contiguous(),
        scales.contiguous(),
    )
    zeros = None if zeros is None else zeros.contiguous()
    choice_weights = None if choice_weights is None else choice_weights.contiguous()
    sorted_ids, experts = sorted_ids.to(torch.int32).contiguous(), experts.to(torch.int32).contiguous()
    n, k = codes.shape[1], input.shape[1]
    _wna16_gemm(
        Wna16GemmArguments(
            ctypes.pointer(rows),
            pointer(wide),
            pointer(codes, torch.uint8),
            pointer(scales, scales.dtype),
            pointer(zeros, torch.uint8),
            pointer(choice_weights),
            pointer(sorted_ids, torch.int32),
            pointer(experts, torch.int32),
            pointer(out),
            len(experts),
            block_size,
            top_k,
            n,
            k,
            k // scales.shape[2],
            bits,
            FLOAT_KINDS[scales.dtype],
        )
    )
    output.copy_(out)
