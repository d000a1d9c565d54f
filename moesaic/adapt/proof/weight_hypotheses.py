"""Hypotheses about weights: matrices in each other's place, transposed, or laid out in turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moesaic.adapt.proof.hypotheses import Change, Hypothesis, layers_of_moes, moes_in
from moesaic.experts.layer import MoE
from moesaic.models.decoder import Decoder

PARTS = ("gate", "up", "down")


def of_all_experts(model: Decoder) -> list[Hypothesis]:
    """What may be wrong with the weights of every expert alike."""
    found = []
    moes = moes_in(model)
    if any(moe.spec.gated for moe in moes):
        found.append(_weights("gate and up swapped in every expert", _SWAPPED, swapped(range(len(moes)))))
        found.append(
            _weights(
                "gate's and up's rows taking turns instead of following each other",
                "the experts are stored interleaved: interleaved=True in their weight rule",
                _gated_rows(range(len(moes)), _deinterleave, _interleave),
            )
        )
    for parts in ([[p] for p in PARTS] + [list(PARTS)]) if any(_square(moe) for moe in moes) else []:
        found.append(
            _weights(f"{_named(parts)} of every expert transposed", _TRANSPOSED, transposed(range(len(moes)), parts))
        )
    return found


def of_layers(model: Decoder, moes: Sequence[int]) -> list[Hypothesis]:
    """What may be wrong with the experts of one layer, by its place among those with experts."""
    layers = layers_of_moes(model)
    return [
        _weights(f"gate and up swapped in every expert of layer {layers[m]}", _SWAPPED, swapped([m]))
        for m in moes
        if moes_in(model)[m].spec.gated
    ]


def of_expert(model: Decoder, m: int, e: int) -> list[Hypothesis]:
    """What may be wrong with one expert of the m-th layer that has some."""
    moe, layer = moes_in(model)[m], layers_of_moes(model)[m]
    where = f"expert {e} of layer {layer}"
    found = [_weights(f"gate and up of {where} swapped", _SWAPPED, swapped([m], [e]))] if moe.spec.gated else []
    if _square(moe):
        for parts in [[p] for p in PARTS] + [list(PARTS)]:
            found.append(_weights(f"{_named(parts)} of {where} transposed", _TRANSPOSED, transposed([m], parts, [e])))
    return found


def exchanged(model: Decoder, m: int, a: int, b: int) -> Hypothesis:
    """Two experts of the m-th layer that has some have each other's weights."""

    @contextmanager
    def change(model: Decoder) -> Iterator[None]:
        pages = moes_in(model)[m].experts
        stacks = [pages.gate_up, pages.down, *(b for b in (pages.gate_up_bias, pages.down_bias) if b is not None)]
        for stack in stacks:
            _exchange(stack, a, b)
        try:
            yield
        finally:
            for stack in stacks:
                _exchange(stack, a, b)

    layer = layers_of_moes(model)[m]
    return _weights(f"experts {a} and {b} of layer {layer} exchanged", "the experts are numbered otherwise", change)


_SWAPPED = "gate_proj and up_proj are stored under each other's names: swap them in the file or in the weight rule"
_TRANSPOSED = "it is stored as its transpose: transposed=True in the weight rule, or transpose it in the file"


def _weights(what: str, advice: str, change: Change) -> Hypothesis:
    return Hypothesis("weights", what, advice, change)


def swapped(moes: Sequence[int], experts: Sequence[int] | None = None) -> Change:
    """Gate and up in each other's place."""
    return _gated_rows(moes, _roll, _roll, experts)


def _roll(rows: Tensor) -> Tensor:
    return rows.roll(rows.shape[0] // 2, 0)


def _deinterleave(rows: Tensor) -> Tensor:
    return torch.cat((rows[0::2], rows[1::2]))


def _interleave(rows: Tensor) -> Tensor:
    half = rows.shape[0] // 2
    return torch.stack((rows[:half], rows[half:]), 1).flatten(0, 1)


def _gated_rows(
    moes: Sequence[int],
    do: Callable[[Tensor], Tensor],
    undo: Callable[[Tensor], Tensor],
    experts: Sequence[int] | None = None,
) -> Change:
    """The rows of gate over up in another order."""

    @contextmanager
    def change(model: Decoder) -> Iterator[None]:
        chosen = [moe for moe in (moes_in(model)[m] for m in moes) if moe.spec.gated]
        stacks = [s for moe in chosen for s in (moe.experts.gate_up, moe.experts.gate_up_bias) if s is not None]
        _each(stacks, experts, do)
        try:
            yield
        finally:
            _each(stacks, experts, undo)

    return change


def transposed(moes: Sequence[int], parts: Sequence[str], experts: Sequence[int] | None = None) -> Change:
    """Square matrices as their transposes."""

    @contextmanager
    def change(model: Decoder) -> Iterator[None]:
        chosen = [moe for moe in (moes_in(model)[m] for m in moes) if _square(moe)]
        for moe in chosen:
            _transpose(moe, parts, experts)
        try:
            yield
        finally:
            for moe in chosen:
                _transpose(moe, parts, experts)

    return change


def _transpose(moe: MoE, parts: Sequence[str], experts: Sequence[int] | None) -> None:
    for part in parts:
        for e in range(moe.spec.num_experts) if experts is None else experts:
            matrix = _matrix(moe, part, e)
            if matrix is not None:
                matrix.copy_(matrix.T.clone())


def _matrix(moe: MoE, part: str, e: int) -> Tensor | None:
    """One matrix of an expert, where it lies."""
    wide = moe.experts.gate_up.data[e]
    if part == "down":
        return moe.experts.down.data[e]
    if not moe.spec.gated:
        return wide if part == "up" else None
    half = wide.shape[0] // 2
    return wide[:half] if part == "gate" else wide[half:]


def _square(moe: MoE) -> bool:
    return bool(moe.experts.down.shape[1] == moe.experts.down.shape[2])


def _each(stacks: Sequence[Any], experts: Sequence[int] | None, do: Callable[[Tensor], Tensor]) -> None:
    for stack in stacks:
        for e in range(len(stack)) if experts is None else experts:
            stack[e].data.copy_(do(stack[e].data).clone())


def _exchange(stack: Any, a: int, b: int) -> None:
    kept = stack[a].data.clone()
    stack[a].data.copy_(stack[b].data)
    stack[b].data.copy_(kept)


def _named(parts: Sequence[str]) -> str:
    return "all matrices" if len(parts) == len(PARTS) else parts[0]
