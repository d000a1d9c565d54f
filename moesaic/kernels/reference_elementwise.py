"""The oracle's sums, gates and caps between products, in plain torch."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Literal["sigmoid", "softplus", "identity"]


def mix(x: Tensor, y: Tensor | None, a: float = 1.0, b: float = 1.0, gate: Tensor | None = None) -> Tensor:
    """`a * x + b * sigmoid(gate) * y`: `[T, H]`, `[T, H]`, `[T, 1]` -> `[T, H]` in x's dtype, computed in fp32.

    Args:
        y: None adds nothing.
        gate: None for no gate.
    """
    wide = x.float() * a
    if y is not None:
        share = b if gate is None else b * gate.float().sigmoid()
        wide = wide + share * y.float()
    return wide.to(x.dtype)


def apply_gate(x: Tensor, gate: Tensor, kind: Gate = "sigmoid") -> Tensor:
    """`x * f(gate)`: `[T, N]`, gate `[T, N]` or `[T, N / g]`, one for g neighbours -> `[T, N]`, computed in fp32."""
    factor = gate.float()
    if kind != "identity":
        factor = factor.sigmoid() if kind == "sigmoid" else F.softplus(factor)
    return (x.float() * factor.repeat_interleave(x.shape[1] // gate.shape[1], 1)).to(x.dtype)


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`, computed in fp32."""
    return (torch.tanh(x.float() / cap) * cap).to(x.dtype)


def clamp(x: Tensor, limit: float) -> Tensor:
    """Bounded to [-limit, limit]; NaN stays."""
    return x.clamp(-limit, limit)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """`x + bias`: `[T, N]`, `[N]` -> `[T, N]`, computed in fp32."""
    return (x.float() + bias.float()).to(x.dtype)


def add_identity(x: Tensor, y: Tensor, ids: Tensor, weights: Tensor, first: int) -> Tensor:
    """What experts add that give what they are given: `x + (sum of weights whose ids are at least first) * y`, in fp32.

    Args:
        x, y: `[T, H]`.
        ids: `[T, k]` int32.
        weights: `[T, k]` fp32.
    """
    weight = torch.where(ids >= first, weights.float(), 0.0).sum(1, keepdim=True)
    return (x.float() + weight * y.float()).to(x.dtype)
