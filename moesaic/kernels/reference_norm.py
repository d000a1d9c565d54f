"""The oracle's norms, embedding and gathered rows, in plain torch."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension: `[..., D]`, `[D]` -> `[..., D]` in x's dtype."""
    wide = x.float()
    # Four operations; torch's own rms_norm is nine small ones on a CPU, and a step of a small model is all overhead.
    norm = torch.linalg.vector_norm(wide, 2, -1, True)  # [..., 1]
    scale = torch.addcmul(_scalar(eps, x.device), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype)


def norm_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` of each head: `[T, heads, D]` or `[T, D]`, `[D]` -> the same shape; rows may lie apart."""
    return rms_norm(x, weight, eps)


@cache
def _scalar(value: float, device: torch.device) -> Tensor:
    """A number as a tensor, made once."""
    return torch.tensor(value, device=device)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension: `[..., D]` -> `[..., D]`."""
    wide_bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), wide_bias, eps).to(x.dtype)


def add_rms_norm(
    hidden: Tensor, delta: Tensor | None, alpha: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`hidden + alpha * delta` `[T, H]` and its `rms_norm`; a delta of None adds nothing. May write into `hidden`."""
    hidden = hidden if delta is None else torch.add(hidden, delta, alpha=alpha)
    return hidden, rms_norm(hidden, weight, eps)


def add_layer_norm(
    hidden: Tensor, delta: Tensor | None, alpha: float, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`hidden + alpha * delta` `[T, H]` and its `layer_norm`; a delta of None adds nothing. May write into `hidden`."""
    hidden = hidden if delta is None else torch.add(hidden, delta, alpha=alpha)
    return hidden, layer_norm(hidden, weight, bias, eps)


def embed(ids: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of the table, times `scale`: ids `[T]` int64, table `[V, H]` -> `[T, H]` in the table's dtype."""
    rows = F.embedding(ids, table)
    return rows if scale == 1.0 else rows * scale


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]`: `[T, H]`, `[N]` int64 -> `[N, H]`."""
    return x.index_select(0, rows)
