"""Products with packed weights: linear layers, and a whole layer of experts (csrc/kernels/linear.cpp, moe.cpp).

Activations are fp32, contiguous, on the CPU; everything else about an operation is its oracle's, in
`kernels.reference_moe`.
"""

import ctypes
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from moesaic.core.errors import unknown_name
from moesaic.kernels.cpu.calls import Count, Kernel, Matrix, pointer
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.kernels.reference_moe import ALPHA, LIMIT, SILU_CLAMPED, SWIGLUOAI

ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4, "relu2": 5, SWIGLUOAI: 6, SILU_CLAMPED: 7}
GATED_ONLY = (SWIGLUOAI, SILU_CLAMPED)


class Activate(ctypes.Structure):
    """`moesaic_activate`."""

    _fields_ = (("kind", ctypes.c_int32), ("alpha", ctypes.c_float), ("limit", ctypes.c_float))


class LinearArgs(ctypes.Structure):
    """`moesaic_linear_args`."""

    _fields_ = (
        ("rows", Count),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("matrix", Matrix),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("activation", Activate),
    )


class Expert(ctypes.Structure):
    """`moesaic_expert`."""

    _fields_ = (
        ("gate_up", Matrix),
        ("down", Matrix),
        ("gate_up_bias", ctypes.c_void_p),
        ("down_bias", ctypes.c_void_p),
    )


class FusedMoeArgs(ctypes.Structure):
    """`moesaic_fused_moe_args`."""

    _fields_ = (
        ("rows", Count),
        ("hidden", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("slots", ctypes.POINTER(Expert)),
        ("slot_of", ctypes.c_void_p),
        ("hidden_size", ctypes.c_int64),
        ("num_experts", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("weight_on_input", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("activation", Activate),
        ("tally", ctypes.c_void_p),
    )


class StreamReadArgs(ctypes.Structure):
    """`moesaic_stream_read_args`."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_int64))


_linear, _fused_moe, _stream_read = Kernel("linear"), Kernel("fused_moe"), Kernel("stream_read")


class PackedExperts:
    """The experts of a layer as kernels find them: a page table, and packed matrices by slot.

    Args:
        slot_of: `[E]` int32, the slot of each logical expert, negative where it has none; kernels read it where it
            lies, so that changing it moves experts.
        gate_up, down: by slot, `[2I, H]` gated or `[I, H]`, and `[H, I]`, each in its own format.
        gate_up_bias, down_bias: by slot, fp32.

    Raises:
        ValueError: shapes disagree: a kernel would read out of bounds.
    """

    def __init__(
        self,
        slot_of: Tensor,
        gate_up: Sequence[PackedMatrix],
        down: Sequence[PackedMatrix],
        gate_up_bias: Sequence[Tensor] | None = None,
        down_bias: Sequence[Tensor] | None = None,
    ) -> None:
        self.slot_of = slot_of
        self.gate_up, self.down = list(gate_up), list(down)
        self.gate_up_bias = None if gate_up_bias is None else list(gate_up_bias)
        self.down_bias = None if down_bias is None else list(down_bias)
        self.hidden_size, self.intermediate_size = self.down[0].shape
        self.gated = self.gate_up[0].gated
        for by_slot in (self.down, self.gate_up_bias, self.down_bias):
            if by_slot is not None and len(by_slot) != len(self.gate_up):
                raise ValueError(f"{len(self.gate_up)} slots, but {len(by_slot)} matrices or biases of another kind")
        if len(slot_of) and int(slot_of.max()) >= len(self.gate_up):
            raise ValueError(f"the page table names slot {int(slot_of.max())} of {len(self.gate_up)}")

    @cached_property
    def table(self) -> "ctypes.Array[Expert]":
        """What C++ takes; good as long as this object lives."""
        table = (Expert * len(self.gate_up))()
        for slot in range(len(table)):
            table[slot] = self._entry(slot)
        return table

    def place(self, slot: int, gate_up: PackedMatrix, down: PackedMatrix) -> None:
        """Put other weights into a slot; its biases stay."""
        self.gate_up[slot], self.down[slot] = gate_up, down
        self.table[slot] = self._entry(slot)

    def _entry(self, slot: int) -> Expert:
        gate_up, down, wide = self.gate_up[slot], self.down[slot], self.intermediate_size * (2 if self.gated else 1)
        shapes = (gate_up.shape, down.shape, gate_up.gated, down.gated)
        wanted = ((wide, self.hidden_size), (self.hidden_size, self.intermediate_size), self.gated, False)
        if shapes != wanted:
            raise ValueError(f"slot {slot} holds (gate_up, down, gated, gated) = {shapes}, not {wanted}")
        gate_up_bias = None if self.gate_up_bias is None else self.gate_up_bias[slot]
        down_bias = None if self.down_bias is None else self.down_bias[slot]
        return Expert(
            gate_up.struct, down.struct, _bias_pointer(gate_up_bias, wide), _bias_pointer(down_bias, self.hidden_size)
        )


def linear(x: Tensor, matrix: PackedMatrix, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`scale * x W^T + bias`: `[T, K]`, `[N, K]`, `[N]` -> `[T, N]`."""
    if matrix.gated:
        raise ValueError("linear cannot take a gated matrix; gated_linear can")
    return _product(x, matrix, bias, scale, _activate("none"), matrix.rows)


def gated_linear(
    x: Tensor,
    matrix: PackedMatrix,
    bias: Tensor | None = None,
    activation: str = "silu",
    alpha: float = ALPHA,
    limit: float = LIMIT,
) -> Tensor:
    """`activation(gate) * up` of a product with a gated matrix: `[T, K]`, `[2I, K]`, `[2I]` -> `[T, I]`."""
    if not matrix.gated:
        raise ValueError("gated_linear needs a gated matrix")
    return _product(x, matrix, bias, 1.0, _activate(activation, alpha, limit), matrix.rows // 2)


def activated_linear(x: Tensor, matrix: PackedMatrix, bias: Tensor | None = None, activation: str = "silu") -> Tensor:
    """`activation(x W^T + bias)`: `[T, K]`, `[N, K]`, `[N]` -> `[T, N]`."""
    if matrix.gated or activation in GATED_ONLY:
        raise ValueError("activated_linear needs a matrix and an activation that are not gated")
    return _product(x, matrix, bias, 1.0, _activate(activation), matrix.rows)


def fused_moe(
    hidden: Tensor,
    ids: Tensor,
    weights: Tensor,
    experts: PackedExperts,
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
        activation: gated where the experts are.
        weight_on_input: weights scale the experts' inputs, and their outputs are only summed.
        alpha, limit: of swigluoai.
        block_size: the most rows of an expert that one unit of work takes; 0: chosen by the kernel.
        tally: `[2]` int64, gains the rows routed to experts, and the rows of whole blocks that these take: of
            `block_size`, or where it is 0, of as many rows as the kernel multiplies weights by when it has read them.

    Returns:
        `[T, H]`.
    """
    if hidden.dim() != 2 or hidden.shape[1] != experts.hidden_size:
        raise ValueError(f"hidden is {list(hidden.shape)}, the experts take [T, {experts.hidden_size}]")
    if ids.dim() != 2 or ids.shape != weights.shape or len(ids) != len(hidden) or ids.shape[1] < 1:
        raise ValueError(f"{len(hidden)} tokens, but ids are {list(ids.shape)} and weights {list(weights.shape)}")
    if activation in GATED_ONLY and not experts.gated:
        raise ValueError(f"{activation} is for gated experts")
    out = torch.empty_like(hidden)
    _fused_moe(
        FusedMoeArgs(
            _count(len(hidden)),
            pointer(hidden),
            pointer(ids, torch.int32),
            pointer(weights),
            pointer(out),
            experts.table,
            pointer(experts.slot_of, torch.int32),
            experts.hidden_size,
            len(experts.slot_of),
            ids.shape[1],
            weight_on_input,
            block_size,
            _activate(activation, alpha, limit),
            pointer(tally, torch.int64),
        )
    )
    return out


def stream_read(buffer: Tensor) -> None:
    """Read a contiguous tensor once with all threads: the bandwidth that streaming kernels are compared with."""
    _stream_read(StreamReadArgs(pointer(buffer, buffer.dtype), buffer.numel() * buffer.element_size()))


def _product(
    x: Tensor, matrix: PackedMatrix, bias: Tensor | None, scale: float, activation: Activate, outputs: int
) -> Tensor:
    if x.dim() != 2 or x.shape[1] != matrix.cols:
        raise ValueError(f"x is {list(x.shape)}, the matrix takes [T, {matrix.cols}]")
    out = x.new_empty(len(x), outputs)
    _linear(
        LinearArgs(
            _count(len(x)),
            pointer(x),
            pointer(out),
            matrix.struct,
            _bias_pointer(bias, matrix.rows),
            scale,
            activation,
        )
    )
    return out


def _count(number: int) -> "ctypes._Pointer[ctypes.c_int64]":
    return ctypes.pointer(ctypes.c_int64(number))


def _bias_pointer(bias: Tensor | None, size: int) -> int | None:
    if bias is not None and bias.shape != (size,):
        raise ValueError(f"a bias is {list(bias.shape)}, the matrix has {size} rows")
    return pointer(bias)


def _activate(name: str, alpha: float = ALPHA, limit: float = LIMIT) -> Activate:
    kind = ACTIVATIONS.get(name)
    if kind is None:
        raise ValueError(unknown_name("activation", name, ACTIVATIONS))
    return Activate(kind, alpha, limit)
