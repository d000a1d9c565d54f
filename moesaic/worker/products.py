"""Why a product with a weight is not finite: its weight, its input, or the range of its dtype; and of experts, which
of them, and which of its matrices."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.reference_moe import ACTIVATIONS, activate_gated, linear
from moesaic.kernels.registry import kernel
from moesaic.weights.norms import LARGE_EXPERT
from moesaic.worker.findings import RouterState
from moesaic.worker.weight_notes import Weights

GATED = ("gate", "up", "down")
DAMAGED = "The weight is damaged, in the checkpoint or since: get it, or convert it, anew"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What is known of one operation that fails.

    Attributes:
        op: by the name of its weight, or in words.
        names: canonical ones of weights that take part, the one in question first.
    """

    op: str
    cause: str
    advice: str
    expert: int | None = None
    largest: float | None = None
    exact: float | None = None
    expert_norms: dict[int, float] | None = None
    names: tuple[str, ...] = ()
    router: RouterState | None = None


def of_experts(known: Weights, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], row: int) -> Cause:
    """The experts of one token: which of them, and which of its matrices.

    Args:
        known: the model's weights.
        args, kwargs: of `fused_moe`.
    """
    hidden, ids, weights, pages, activation = args[:5]
    options = {key: kwargs[key] for key in ("alpha", "limit") if key in kwargs}
    x, chosen = hidden[row : row + 1], ids[row].tolist()
    if kwargs.get("weight_on_input"):
        x = (x * weights[row].max()).to(x.dtype)
    slots = {e: s for e, s in enumerate(pages.slot_of.tolist()) if s >= 0}
    every = torch.tensor([[e] for e in slots], dtype=torch.int32, device=x.device)
    run = kernel("fused_moe", "cpu" if isinstance(pages, PackedExperts) else "reference")
    each = run(x.repeat(len(slots), 1), every, torch.ones(len(slots), 1, device=x.device), pages, activation, **options)
    norms = dict(zip(slots, each.double().norm(dim=1).tolist(), strict=True))
    spoilt = [e for e, out in zip(slots, each, strict=True) if e in chosen and not out.isfinite().all()]
    largest = float(x.abs().max())
    if not spoilt:
        return Cause(op="sum of experts", cause="each expert's output is finite, their weighted sum is not",
                     advice=advice_for(each.dtype), largest=largest, expert_norms=norms)  # fmt: skip
    expert = spoilt[0]
    gate_up, down = pages.gate_up[slots[expert]], pages.down[slots[expert]]
    biases = [None if b is None else b[slots[expert]] for b in (pages.gate_up_bias, pages.down_bias)]
    gated = gate_up.shape[0] == 2 * down.shape[1]
    names = {p: known.find(path, f"experts.{expert}.{p}") or known.find(path, f"{expert}.{p}") for p in GATED}
    wide = linear(x, gate_up, biases[0])
    inner = activate_gated(wide.clone(), activation, **options) if gated else ACTIVATIONS[activation](wide)
    if not wide.isfinite().all():
        column = first_bad(wide[0])
        part = "gate" if gated and column < down.shape[1] else "up"
        found = of_product(known, x[0], gate_up, biases[0], column, names[part], part, wide.dtype)
    elif not inner.isfinite().all():
        found = of_activation(wide, "activation")
    else:
        column = first_bad(linear(inner, down, biases[1])[0])
        found = of_product(known, inner[0], down, biases[1], column, names["down"], "down", each.dtype)
    beside = (name for part, name in names.items() if name is not None and part != found.op)
    return Cause(op=found.op, cause=found.cause, advice=found.advice, expert=expert, largest=largest,
                 exact=found.exact, expert_norms=norms, names=(*found.names, *beside))  # fmt: skip


def of_product(
    weights: Weights,
    x: Tensor,
    matrix: Any,
    bias: Tensor | None,
    column: int,
    name: str | None,
    op: str,
    dtype: torch.dtype,
    instead: str = "",
) -> Cause:
    """One output of a product: `x` `[K]` with row `column` of the matrix.

    Args:
        instead: the advice for an overflow.
    """
    weight = matrix[column] if isinstance(matrix, Tensor) else matrix.unpack(column, 1)[0]
    largest, exact = float(x.abs().max()), float((x.double() @ weight.double()).abs())
    names = () if name is None else (name,)
    note = weights.note(name) if name is not None else None
    if not weight.isfinite().all() or (note is not None and note.nonfinite):
        where = "" if note is None else f": {note.spoilt}"
        cause, advice = f"the weight has numbers that are not finite{where}", DAMAGED
    elif bias is not None and not bias.isfinite().all():
        cause, advice = "its bias has numbers that are not finite", DAMAGED
    elif not isfinite(largest):
        cause, advice = "it was given numbers that are not finite", "See what comes before it"
    else:
        how = "overflow" if exact > torch.finfo(dtype).max / 2 else "overflow on the way"
        cause, advice = f"{how}: it gives {exact:.4g}, and {ends(dtype)}", instead or advice_for(dtype)
        if note is not None and note.ratio is not None and note.ratio > LARGE_EXPERT:
            cause += f"; {name} is {note.ratio:.3g} times as large as its neighbours"
            advice = "The weight looks damaged, for instance by a wrong scale of a quantised group: convert it anew"
    return Cause(op=op, cause=cause, advice=advice, largest=largest, exact=exact, names=names)


def of_activation(wide: Tensor, op: str) -> Cause:
    """An activation whose input is finite."""
    cause = f"overflow: it is given up to {float(wide.abs().max()):.4g}, and {ends(wide.dtype)}"
    return Cause(op=op, cause=cause, advice=advice_for(wide.dtype))


def first_bad(numbers: Tensor) -> int:
    """The place of the first number `[N]` that is not finite; of the largest, where all are."""
    bad = (~numbers.isfinite()).nonzero()
    return int(bad[0, 0]) if len(bad) else int(numbers.abs().argmax())


def ends(dtype: torch.dtype) -> str:
    """Where its range does."""
    return f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.5g}"


def advice_for(dtype: torch.dtype) -> str:
    """What helps where its range is too small."""
    if dtype is torch.float16:
        return "Run it with --dtype bfloat16 or float32"
    return "No dtype holds this: see the weights before it, their scales, and whether something there must be clamped"
