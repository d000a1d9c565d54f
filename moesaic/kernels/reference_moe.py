"""The oracle of products with weights: linear layers, gated ones, and a whole layer of experts, in plain torch.

A matrix is a tensor `[outputs, inputs]`, or packed (anything with `unpack() -> fp32 [outputs, inputs]`); of a gated one
gate's rows come first, then up's. Products of a tensor run in x's dtype, as torch computes them; those of a packed
matrix in fp32, on its numbers as kernels understand them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Packed(Protocol):
    """A packed matrix, as far as an oracle needs it."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def unpack(self) -> Tensor: ...


Matrix = Tensor | Packed

SWIGLUOAI = "swigluoai"
SILU_CLAMPED = "silu_clamped"
ALPHA, LIMIT = 1.702, 7.0  # of swigluoai, as gpt-oss has them


class Experts(Protocol):
    """The experts of a layer, wherever their weights lie.

    Attributes:
        slot_of: `[E]` int32 page table: the slot of each logical expert, negative where it has none.
        gate_up, down: by slot, `[2I, H]` (or `[I, H]`, ungated) and `[H, I]`.
        gate_up_bias, down_bias: by slot, `[2I]` (`[I]`) and `[H]` fp32; None where no expert has any.
    """

    slot_of: Tensor
    gate_up: Tensor | Sequence[Matrix]
    down: Tensor | Sequence[Matrix]
    gate_up_bias: Tensor | Sequence[Tensor] | None
    down_bias: Tensor | Sequence[Tensor] | None


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
}


def activate_gated(x: Tensor, activation: str = "silu", alpha: float = ALPHA, limit: float = LIMIT) -> Tensor:
    """`activation(gate) * up` where a row is gate, then up: `[..., 2I]` -> `[..., I]`.

    swigluoai is gpt-oss's: `g * sigmoid(alpha * g) * (u + 1)` with `g <= limit` and `-limit <= u <= limit`.
    silu_clamped clamps later: `min(silu(g), limit) * u` with `-limit <= u <= limit`.
    """
    gate, up = x.chunk(2, dim=-1)
    if activation == SWIGLUOAI:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + 1)
    if activation == SILU_CLAMPED:
        return F.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)
    return ACTIVATIONS[activation](gate).mul_(up)


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`scale * x W^T + bias`: `[T, K]`, `[N, K]`, `[N]` -> `[T, N]` in x's dtype."""
    weight = matrix if isinstance(matrix, Tensor) else matrix.unpack()
    product = F.linear(x.to(weight.dtype), weight)
    if scale != 1.0:
        product = product * scale
    return (product if bias is None else product + bias).to(x.dtype)


def gated_linear(
    x: Tensor,
    matrix: Matrix,
    bias: Tensor | None = None,
    activation: str = "silu",
    alpha: float = ALPHA,
    limit: float = LIMIT,
) -> Tensor:
    """`activation(gate) * up` of a product with a gated matrix: `[T, K]`, `[2I, K]`, `[2I]` -> `[T, I]`."""
    return activate_gated(linear(x, matrix, bias), activation, alpha, limit)


def activated_linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None, activation: str = "silu") -> Tensor:
    """`activation(x W^T + bias)`: `[T, K]`, `[N, K]`, `[N]` -> `[T, N]`."""
    return ACTIVATIONS[activation](linear(x, matrix, bias))


def fused_moe(
    hidden: Tensor,
    ids: Tensor,
    weights: Tensor,
    experts: Experts,
    activation: str = "silu",
    weight_on_input: bool = False,
    alpha: float = ALPHA,
    limit: float = LIMIT,
    block_size: int = 0,
    tally: Tensor | None = None,
) -> Tensor:
    """Each token's weighted sum of what its chosen experts make of it, in the order of its choices.

    Args:
        hidden: `[T, H]`.
        ids: `[T, k]` int32, logical experts; a choice that is negative or whose expert has no slot is left out.
        weights: `[T, k]` fp32.
        activation: gated where `gate_up` has 2I rows, plain where it has I.
        weight_on_input: weights scale the experts' inputs, and their outputs are only summed.
        alpha, limit: of swigluoai.
        block_size: for the kernels that work in blocks of an expert's rows; without meaning here.
        tally: `[2]` int64, gains the rows routed to experts, and the rows computed: the same here.

    Returns:
        `[T, H]` in hidden's dtype.
    """
    num_tokens, k = ids.shape
    outputs = hidden.new_zeros(num_tokens * k, hidden.shape[1])
    for slot, pairs in by_slot(ids, experts.slot_of):
        rows = hidden.index_select(0, pairs.div(k, rounding_mode="floor"))  # [n, H]
        if weight_on_input:
            rows = (rows * weights.flatten().index_select(0, pairs).unsqueeze(1)).to(hidden.dtype)
        if tally is not None:
            tally += len(pairs)
        outputs.index_copy_(0, pairs, _expert(rows, experts, slot, activation, alpha, limit))
    return combine(outputs.view(num_tokens, k, -1), torch.ones_like(weights) if weight_on_input else weights)


def by_slot(ids: Tensor, slot_of: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The slots that `ids` `[T, k]` are served from, and the choices (`token * k + choice`) of each, together."""
    sorted_slots, order = _slots(ids.flatten(), slot_of).sort(stable=True)
    active, counts = torch.unique_consecutive(sorted_slots, return_counts=True)
    for slot, pairs in zip(active.tolist(), order.split(counts.tolist()), strict=True):
        if slot >= 0:
            yield slot, pairs


def _slots(ids: Tensor, slot_of: Tensor) -> Tensor:
    """The slot of each id, -1 where there is none."""
    known = (ids >= 0) & (ids < len(slot_of))
    return torch.where(known, slot_of.index_select(0, torch.where(known, ids, 0)), -1).clamp(min=-1)


def _expert(x: Tensor, experts: Experts, slot: int, activation: str, alpha: float, limit: float) -> Tensor:
    """One expert: `[n, H]` -> `[n, H]`."""
    gate_up, down = experts.gate_up[slot], experts.down[slot]
    wide = linear(x, gate_up, None if experts.gate_up_bias is None else experts.gate_up_bias[slot])
    gated = wide.shape[1] != down.shape[1]
    inner = activate_gated(wide, activation, alpha, limit) if gated else ACTIVATIONS[activation](wide)
    return linear(inner, down, None if experts.down_bias is None else experts.down_bias[slot])


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
