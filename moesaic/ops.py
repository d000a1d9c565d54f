"""The raw operations of MoE layers, under the names and signatures that other engines gave them.

They work on plain tensors and know nothing of models or engines: `grouped_topk` chooses experts, `moe_align_block_size`
sorts the choices into blocks of one expert each, `moe_wna16_gemm` multiplies such blocks by quantised experts. On a CPU
they are C++; elsewhere, and where no library is built, plain torch. Arguments that do not fit each other raise
ValueError, and ids are checked before anything is read or written by them. docs/ops.md shows them together.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moesaic.kernels import reference_ops, reference_router
from moesaic.kernels.cpu import ops as cpu_ops
from moesaic.kernels.cpu import router as cpu_router
from moesaic.kernels.cpu.library import Unavailable, library

__all__ = ["grouped_topk", "moe_align_block_size", "moe_wna16_gemm"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64)
EPSILON = 1e-20  # what other engines add to the sum that weights are divided by


def grouped_topk(
    scores: Tensor,
    scores_with_bias: Tensor,
    n_group: int,
    topk_group: int,
    topk: int,
    renormalize: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts out of its best groups of experts (DeepSeek-V3, 2024).

    The groups are groups of *experts*, E / n_group consecutive ids each, as in DeepSeek's papers; some guides speak of
    groups of tokens, which these are not. A group is worth the sum of its two best biased scores; the best topk of the
    experts in the best topk_group groups are taken, again by biased score, among equals the lowest id. Weights are the
    unbiased scores of the chosen. A NaN counts as the best score there is, so that ids are always valid.

    Args:
        scores: `[T, E]`, floating, such as the sigmoid of the router's logits.
        scores_with_bias: `[T, E]`, what is chosen by: the scores plus each expert's correction bias.
        n_group: groups; it divides E.
        topk_group: groups that are kept.
        topk: experts a token goes to, at most those in the kept groups.
        renormalize: divide the weights of a token by their sum (plus 1e-20).
        routed_scaling_factor: multiplies the weights, after that.

    Returns:
        weights `[T, topk]` float32, and ids `[T, topk]` int32, best first.

    Raises:
        ValueError: shapes, dtypes or numbers that do not fit each other.
    """
    _check_tensor("scores", scores, 2, FLOATS)
    _check_tensor("scores_with_bias", scores_with_bias, 2, FLOATS)
    _check(
        scores.shape == scores_with_bias.shape,
        f"scores {_shape(scores)} and scores_with_bias {_shape(scores_with_bias)} differ",
    )
    num_experts = scores.shape[1]
    _check_counts(n_group=n_group, topk_group=topk_group, topk=topk)
    _check(num_experts % n_group == 0, f"{num_experts} experts cannot be cut into n_group={n_group} equal groups")
    _check(topk_group <= n_group, f"topk_group is {topk_group}, but there are {n_group} groups")
    most = topk_group * (num_experts // n_group)
    _check(topk <= most, f"topk is {topk}, but {topk_group} of {n_group} groups hold {most} experts")
    backend = cpu_router if _compiled(scores, scores_with_bias) else reference_router
    ids, weights = backend.route(
        scores.float().contiguous(),
        topk,
        scoring="identity",
        renormalize=bool(renormalize),
        num_groups=n_group,
        top_groups=topk_group,
        epsilon=EPSILON,
        scale=float(routed_scaling_factor),
        choice=scores_with_bias.float().contiguous(),
    )
    return weights, ids


def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
) -> None:
    """Sort choices of experts into blocks of block_size that belong to one expert each, in place.

    Choice i is that of token `i // k`. Experts come in rising order, each one's choices too; the last block of each is
    filled up with `topk_ids.numel()`, as is the rest of `sorted_token_ids`.

    Args:
        topk_ids: `[T, k]` (or any shape) int32 or int64, each in [0, num_experts).
        block_size: choices a block.
        sorted_token_ids: int32, written; at least as long as the padded choices, which are at most
            `topk_ids.numel() + num_experts * (block_size - 1)`.
        experts_ids: int32, written: the expert of each block, 0 beyond the last; at least as long as there are blocks.
        num_tokens_post_pad: `[1]` int32, written: the length of the padded choices.

    Raises:
        ValueError: an id that is no expert's, an output that is too short, or another wrong shape or dtype; nothing
            has been written then.
    """
    _check_tensor("topk_ids", topk_ids, None, INTEGERS)
    _check_counts(num_experts=num_experts, block_size=block_size)
    for name, tensor in (("sorted_token_ids", sorted_token_ids), ("experts_ids", experts_ids)):
        _check_tensor(name, tensor, 1, (torch.int32,))
        _check(tensor.is_contiguous(), f"{name} must be contiguous, it is written in place")
    _check_tensor("num_tokens_post_pad", num_tokens_post_pad, None, (torch.int32,))
    _check(num_tokens_post_pad.numel() == 1, f"num_tokens_post_pad has one element, got {_shape(num_tokens_post_pad)}")
    ids = topk_ids.flatten()
    _check_ids("topk_ids", ids, 0, num_experts)
    _check(len(ids) < 2**31, f"{len(ids)} choices do not fit 32-bit indices")
    blocks = int(((torch.bincount(ids, minlength=num_experts) + block_size - 1) // block_size).sum())
    for name, tensor, wanted in (
        ("sorted_token_ids", sorted_token_ids, blocks * block_size),
        ("experts_ids", experts_ids, blocks),
    ):
        _check(len(tensor) >= wanted, f"{name} has {len(tensor)} elements, these choices need {wanted}")
    backend = _backend(topk_ids, sorted_token_ids, experts_ids)
    num_tokens_post_pad.fill_(backend.align_blocks(ids, num_experts, block_size, sorted_token_ids, experts_ids))


def moe_wna16_gemm(
    input: Tensor,
    output: Tensor,
    b_qweight: Tensor,
    b_scales: Tensor,
    b_qzeros: Tensor | None,
    topk_weights: Tensor | None,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_pad: Tensor,
    top_k: int,
    BLOCK_SIZE_M: int,
    BLOCK_SIZE_N: int,
    BLOCK_SIZE_K: int,
    bit: int,
) -> Tensor:
    """Multiply tokens by the quantised weights of their experts: `output[i] = input[i // top_k] @ weight[e].T`.

    A weight is `(code - zero) * scale`, where a group of consecutive inputs has a scale and a zero of its own; without
    zeros they are 8 (4 bits) or 128 (8 bits). Sums are fp32.

    Args:
        input: `[M, K]` floating.
        output: `[M, top_k, N]` or `[M * top_k, N]` floating, contiguous, written: row i for choice i, 0 for a choice
            that is in no block.
        b_qweight: `[E, N, K]` uint8 codes (8 bits), or `[E, N, K / 2]` with the even input in the low nibble (4 bits).
        b_scales: `[E, N, K / group]` floating.
        b_qzeros: `[E, N, K / group]` uint8 (8 bits), or `[E, N / 2, K / group]` with the even output in the low nibble
            (4 bits); or None.
        topk_weights: `[M, top_k]` float32 that multiply the outputs, or None.
        sorted_token_ids, expert_ids, num_tokens_post_pad: int32, as `moe_align_block_size` writes them with
            block_size=BLOCK_SIZE_M; an expert of -1 leaves its block out.
        top_k: rows of output that each row of input has; 1 where input has a row a choice.
        BLOCK_SIZE_N, BLOCK_SIZE_K: tiles on a GPU; the results do not depend on them.
        bit: 4 or 8.

    Returns:
        `output`.

    Raises:
        ValueError: shapes, dtypes or ids that do not fit each other.
    """
    _check_counts(top_k=top_k, BLOCK_SIZE_M=BLOCK_SIZE_M, BLOCK_SIZE_N=BLOCK_SIZE_N, BLOCK_SIZE_K=BLOCK_SIZE_K)
    _check(bit in (4, 8), f"bit must be 4 or 8, got {bit!r}")
    _check_weights(input, b_qweight, b_scales, b_qzeros, bit)
    num_choices, n = len(input) * top_k, b_qweight.shape[1]
    _check_tensor("output", output, None, FLOATS)
    _check(
        output.is_contiguous() and output.numel() == num_choices * n and output.shape[-1:] == (n,),
        f"output must be contiguous [{len(input)}, {top_k}, {n}] or [{num_choices}, {n}], got {_shape(output)}",
    )
    if topk_weights is not None:
        _check_tensor("topk_weights", topk_weights, None, (torch.float32,))
        _check(
            topk_weights.numel() == num_choices, f"topk_weights are {_shape(topk_weights)} for {num_choices} choices"
        )
    sorted_ids, experts = _check_blocks(
        sorted_token_ids, expert_ids, num_tokens_post_pad, BLOCK_SIZE_M, b_qweight.shape[0]
    )
    tensors = [t for t in (output, b_scales, b_qzeros, topk_weights, sorted_ids, experts) if t is not None]
    _backend(input, b_qweight, *tensors).wna16_gemm(
        input,
        output.view(num_choices, n),
        b_qweight,
        b_scales,
        b_qzeros,
        topk_weights,
        sorted_ids,
        experts,
        top_k,
        BLOCK_SIZE_M,
        bit,
    )
    return output


def _check_weights(input: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bit: int) -> None:
    """The shapes of quantised experts, for this input."""
    _check_tensor("input", input, 2, FLOATS)
    _check_tensor("b_qweight", codes, 3, (torch.uint8,))
    _check_tensor("b_scales", scales, 3, FLOATS)
    k, (experts, n, stored) = input.shape[1], codes.shape
    _check(stored * 8 == k * bit, f"b_qweight {_shape(codes)} of {bit} bits does not hold the {k} inputs of a row")
    groups = scales.shape[2]
    _check(
        scales.shape[:2] == (experts, n) and groups > 0 and k % groups == 0,
        f"b_scales must be [{experts}, {n}, groups], where groups divides {k}, got {_shape(scales)}",
    )
    _check(bit == 8 or (k // groups) % 2 == 0, f"a group of {k // groups} inputs splits a byte of two 4-bit codes")
    if zeros is not None:
        _check_tensor("b_qzeros", zeros, 3, (torch.uint8,))
        wanted = (experts, n * bit // 8, groups)
        _check(
            zeros.shape == wanted and n * bit % 8 == 0, f"b_qzeros must be {list(wanted)} uint8, got {_shape(zeros)}"
        )


def _check_blocks(
    sorted_ids: Tensor, experts: Tensor, num_padded: Tensor, block_size: int, num_experts: int
) -> tuple[Tensor, Tensor]:
    """The blocks that are used: their choices and their experts."""
    for name, tensor in (("sorted_token_ids", sorted_ids), ("expert_ids", experts)):
        _check_tensor(name, tensor, 1, INTEGERS)
    _check_tensor("num_tokens_post_pad", num_padded, None, INTEGERS)
    _check(num_padded.numel() == 1, f"num_tokens_post_pad has one element, got {_shape(num_padded)}")
    used = int(num_padded)
    _check(
        used >= 0 and used % block_size == 0,
        f"num_tokens_post_pad is {used}, not a multiple of BLOCK_SIZE_M={block_size}",
    )
    _check(used <= len(sorted_ids), f"num_tokens_post_pad is {used}, sorted_token_ids has {len(sorted_ids)} elements")
    blocks = used // block_size
    _check(blocks <= len(experts), f"expert_ids has {len(experts)} elements for {blocks} blocks")
    _check_ids("expert_ids", experts[:blocks], -1, num_experts)
    return sorted_ids[:used], experts[:blocks]


def _compiled(*tensors: Tensor) -> bool:
    """Whether C++ can serve: the library is there, and the tensors are where it reads."""
    try:
        library()
    except Unavailable:
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _backend(*tensors: Tensor) -> ModuleType:
    return cpu_ops if _compiled(*tensors) else reference_ops


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_tensor(name: str, tensor: Any, dim: int | None, dtypes: tuple[torch.dtype, ...]) -> None:
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    _check(isinstance(tensor, Tensor), f"{name} must be a tensor, got {type(tensor).__name__}")
    _check(tensor.dtype in dtypes, f"{name} must be {wanted}, got {_shape(tensor)}")
    _check(dim is None or tensor.dim() == dim, f"{name} must have {dim} dimensions, got {_shape(tensor)}")


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        _check(whole and value >= 1, f"{name} must be a whole number of at least 1, got {value!r}")


def _check_ids(name: str, ids: Tensor, least: int, end: int) -> None:
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        _check(least <= low and high < end, f"{name} must be in [{least}, {end}), got {low}..{high}")
