"""Why an operation gives numbers that are not finite, though it was given finite ones: its weights, what it was given,
the range of its dtype, the router before it, and the experts beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moesaic.experts.routing import Router
from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.reference_moe import ACTIVATIONS, activate_gated, linear
from moesaic.kernels.registry import kernel
from moesaic.layers.base import Layer
from moesaic.worker.findings import Finding, RouterState
from moesaic.worker.weight_notes import ABSURD_EXPERT, Weights

if TYPE_CHECKING:
    from moesaic.worker.watch import Sight

LAYER = r"(?:^|\.)(\d+)(?:\.|$)"  # the first number of a path
PRODUCTS = ("linear", "gated_linear", "activated_linear")
DAMAGED = "The weight is damaged, in the checkpoint or since: get it, or convert it, anew"
WORDS = {  # what an operation gives, by which of its outputs; "" for what its module is called
    "add_rms_norm": ("the residual stream before it", ""),
    "add_layer_norm": ("the residual stream before it", ""),
    "prepare_qkv": ("queries",),
    "paged_attention": ("the heads' output",),
    "selected_attention": ("the heads' output",),
    "fused_moe": ("experts",),
    "route": ("weights of experts",),
    "mix": ("sum",),
}


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


class Examiner:
    """Knows a model's weights by name, and judges calls of its kernels.

    Attributes:
        weights: all of them.
        routers: path of each router that was asked in this step -> its logits `[T, E]`, ids and weights `[T, k]`.
    """

    def __init__(self, model: Any) -> None:
        self.routers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.weights = Weights(dict(model.named_views()))

    @staticmethod
    def name_of(path: str, op: str, part: int) -> str:
        """What an output is called: `layers.3.attention.o`, `layers.3.attention: queries`."""
        words = WORDS.get(op, ("",))
        word = words[part] if part < len(words) else ""
        return f"{path}: {word}" if word else path or "model"

    def examine(self, sight: "Sight", row: int, position: int | None, before: list[tuple[str, float]]) -> Finding:
        """What is to say of one row of an output that is not finite.

        Args:
            position: of the row's token in its sequence; None where the row is no token of the step's.
        """
        path, bad = sight.site.path, sight.output[row]
        layer = _number(LAYER, path)
        found = self._cause(sight, row)
        state = found.router or (self._router(path, row) if position is not None else None)
        return Finding(
            layer=layer,
            expert=found.expert if found.expert is not None else _number(r"experts\.(\d+)(?:\.|$)", path),
            op=found.op,
            where=path,
            kind="NaN" if bool(bad.isnan().any()) else "infinity",
            dtype=str(sight.output.dtype).removeprefix("torch."),
            largest=found.largest,
            exact=found.exact,
            cause=found.cause,
            advice=found.advice,
            router=state,
            expert_norms=found.expert_norms or {},
            weights=[self.weights.note(name) for name in found.names],
            before=before,
            position=position,
        )

    def _cause(self, sight: "Sight", row: int) -> Cause:
        if sight.kept:
            return _kept(sight, row)
        if sight.site.op == "fused_moe":
            return self._of_experts(sight, row)
        if sight.site.op in PRODUCTS:
            return self._of_linear(sight, row)
        return self._of_other(sight, row)

    def _of_linear(self, sight: "Sight", row: int) -> Cause:
        """A projection; of one that holds several, the one of the first bad output."""
        site, x, matrix = sight.site, sight.args[0][row], sight.args[1]
        bias = sight.args[2] if len(sight.args) > 2 else None
        column = _first_bad(sight.output[row])
        if site.op != "linear":  # the activation is in it: the product is wider, or smaller, than what it gives
            wide = linear(x[None], matrix, bias)[0]
            if wide.isfinite().all():
                return _of_activation(wide, _relative(site.path, "activation"))
            column = _first_bad(wide)
        part = _part(site, column)
        name = self._name(site.path, part)
        if isinstance(site.module, Router):
            return self._of_router(sight, row, column, name)
        return self._of_product(x, matrix, bias, column, name, _relative(site.path, part), sight.output.dtype)

    def _of_router(self, sight: "Sight", row: int, expert: int, name: str | None) -> Cause:
        logits = sight.output[row].float()
        found = self._of_product(
            sight.args[0][row], sight.args[1], None, expert, name, "router", sight.output.dtype,
            "Compute the router in float32 (--dtype float32), or clamp its logits (`StableRouter`)",
        )  # fmt: skip
        return Cause(
            op="router", cause=f"its logit of expert {expert}: {found.cause}", advice=found.advice, expert=expert,
            largest=found.largest, exact=found.exact, names=found.names, router=_state(logits, logits[:0], logits[:0]),
        )  # fmt: skip

    def _of_experts(self, sight: "Sight", row: int) -> Cause:
        """The experts of one token: which of them, and which of its matrices."""
        hidden, ids, weights, pages, activation = sight.args[:5]
        options = {key: sight.kwargs[key] for key in ("alpha", "limit") if key in sight.kwargs}
        x, chosen = hidden[row : row + 1], ids[row].tolist()
        if sight.kwargs.get("weight_on_input"):
            x = (x * weights[row].max()).to(x.dtype)
        slots = {e: s for e, s in enumerate(pages.slot_of.tolist()) if s >= 0}
        every = torch.tensor([[e] for e in slots], dtype=torch.int32, device=x.device)
        run = kernel("fused_moe", "cpu" if isinstance(pages, PackedExperts) else "reference")
        each = run(
            x.repeat(len(slots), 1), every, torch.ones(len(slots), 1, device=x.device), pages, activation, **options
        )
        norms = dict(zip(slots, each.double().norm(dim=1).tolist(), strict=True))
        spoilt = [e for e, out in zip(slots, each, strict=True) if e in chosen and not out.isfinite().all()]
        largest = float(x.abs().max())
        if not spoilt:
            return Cause(op="sum of experts", cause="each expert's output is finite, their weighted sum is not",
                         advice=_advice(each.dtype), largest=largest, expert_norms=norms)  # fmt: skip
        expert, path = spoilt[0], sight.site.path
        gate_up, down = pages.gate_up[slots[expert]], pages.down[slots[expert]]
        biases = [None if b is None else b[slots[expert]] for b in (pages.gate_up_bias, pages.down_bias)]
        gated = gate_up.shape[0] == 2 * down.shape[1]
        names = {p: self._name(path, f"experts.{expert}.{p}") or self._name(path, f"{expert}.{p}") for p in GATED}
        wide = linear(x, gate_up, biases[0])
        inner = activate_gated(wide.clone(), activation, **options) if gated else ACTIVATIONS[activation](wide)
        if not wide.isfinite().all():
            column = _first_bad(wide[0])
            part = "gate" if gated and column < down.shape[1] else "up"
            found = self._of_product(x[0], gate_up, biases[0], column, names[part], part, wide.dtype)
        elif not inner.isfinite().all():
            found = _of_activation(wide, "activation")
        else:
            column = _first_bad(linear(inner, down, biases[1])[0])
            found = self._of_product(inner[0], down, biases[1], column, names["down"], "down", each.dtype)
        beside = (name for part, name in names.items() if name is not None and part != found.op)
        return Cause(op=found.op, cause=found.cause, advice=found.advice, expert=expert, largest=largest,
                     exact=found.exact, expert_norms=norms, names=(*found.names, *beside))  # fmt: skip

    def _of_product(
        self, x: Tensor, matrix: Any, bias: Tensor | None, column: int, name: str | None, op: str, dtype: torch.dtype,
        instead: str = "",
    ) -> Cause:  # fmt: skip
        """One output of a product: `x` `[K]` with row `column` of the matrix.

        Args:
            instead: the advice for an overflow.
        """
        weight = matrix[column] if isinstance(matrix, Tensor) else matrix.unpack(column, 1)[0]
        largest, exact = float(x.abs().max()), float((x.double() @ weight.double()).abs())
        names = () if name is None else (name,)
        note = self.weights.note(name) if name is not None else None
        if not weight.isfinite().all() or (note is not None and note.nonfinite):
            where = "" if note is None else f": {note.spoilt}"
            cause, advice = f"the weight has numbers that are not finite{where}", DAMAGED
        elif bias is not None and not bias.isfinite().all():
            cause, advice = "its bias has numbers that are not finite", DAMAGED
        elif not isfinite(largest):
            cause, advice = "it was given numbers that are not finite", "See what comes before it"
        else:
            cause, advice = f"overflow: it gives {exact:.4g}, and {_ends(dtype)}", instead or _advice(dtype)
            if note is not None and note.ratio is not None and note.ratio > ABSURD_EXPERT:
                cause += f"; {name} is {note.ratio:.3g} times as large as its neighbours"
                advice = "The weight looks damaged, for instance by a wrong scale of a quantised group: convert it anew"
        return Cause(op=op, cause=cause, advice=advice, largest=largest, exact=exact, names=names)

    def _of_other(self, sight: "Sight", row: int) -> Cause:
        """What has no matrix: norms, attention, sums, tables; or a whole module of another library's."""
        site = sight.site
        op = _relative(site.path, "")
        name = self.name_of(op, site.op, sight.part)
        bad = [n for n in self._small(site) if self.weights.measure(n).nonfinite]
        if bad:
            note = self.weights.note(bad[0])
            expert = note.first[0] if note.first is not None and len(note.first) > 2 else None
            cause = f"the weight has numbers that are not finite: {note.spoilt}"
            return Cause(op=name, cause=cause, advice=DAMAGED, expert=expert, names=tuple(bad))
        given = [float(a.abs().max()) for a in sight.args if _is_rows(a)]
        largest = max((peak for peak in given if isfinite(peak)), default=None)
        if "attention" in site.op:
            return Cause(op=name, largest=largest, cause="queries are finite, kept keys or values are not",
                         advice="See --kv-cache-dtype, and prompts that begin alike")  # fmt: skip
        if site.op == "route":
            state = self._router(site.path, row)
            return Cause(op="weights of experts", largest=largest, router=state,
                         cause="the logits are finite, the weights that are made of them are not",
                         advice="Compute the router in float32, or clamp its logits (`StableRouter`)")  # fmt: skip
        reaches = (
            "" if largest is None else f": what it was given reaches {largest:.4g}, and {_ends(sight.output.dtype)}"
        )
        return Cause(op=name, cause=f"overflow{reaches}", advice=_advice(sight.output.dtype), largest=largest)

    def _small(self, site: Any) -> Iterator[str]:
        """Canonical names of the weights that a module itself holds."""
        if site.op == "embed":
            yield from (name for name in (f"{site.path}.weight",) if name in self.weights)
        elif site.op == "module" or isinstance(site.module, Layer):
            for name, _ in site.module.named_parameters(recurse=False):
                if f"{site.path}.{name}" in self.weights:
                    yield f"{site.path}.{name}"

    def _name(self, path: str, part: str) -> str | None:
        """The canonical name of a weight in a module: its own, or that of a part which stands beside it."""
        beside = path.rpartition(".")[0]
        for name in (f"{path}.{part}.weight" if part else f"{path}.weight", f"{beside}.{part}.weight"):
            if name in self.weights:
                return name
        return None

    def _router(self, path: str, row: int) -> RouterState | None:
        """What the last router of the same layer said of a token."""
        layer = re.search(LAYER, path)
        if layer is None:
            return None
        for name, (logits, ids, weights) in self.routers.items():
            if name.startswith(path[: layer.end()]) and row < len(logits):
                return _state(logits[row].float(), weights[row], ids[row])
        return None


GATED = ("gate", "up", "down")


def _state(logits: Tensor, weights: Tensor, ids: Tensor) -> RouterState:
    return RouterState(
        lowest=float(logits.min()),
        highest=float(logits.max()),
        probability_sum=float(logits.softmax(-1).sum()),
        experts=[int(e) for e in ids.tolist()],
        weights=[float(w) for w in weights.tolist()],
    )


def _of_activation(wide: Tensor, op: str) -> Cause:
    """An activation whose input is finite."""
    cause = f"overflow: it is given up to {float(wide.abs().max()):.4g}, and {_ends(wide.dtype)}"
    return Cause(op=op, cause=cause, advice=_advice(wide.dtype))


def _kept(sight: "Sight", row: int) -> Cause:
    """Keys or values that a float16 cache cannot hold."""
    query = _relative(sight.site.path, "")
    return Cause(
        op=f"{query}: keys and values as they are kept",
        cause=f"overflow: what is kept of a token is larger than the cache's dtype holds, and {_ends(torch.float16)}",
        advice="Keep keys and values in another dtype: --kv-cache-dtype bfloat16 or float32",
    )


def _part(site: Any, column: int) -> str:
    """Of a module that holds several projections, the one which a column of the output belongs to; else nothing."""
    for part, size in getattr(site.module, "parts", {}).items():
        if column < size:
            return str(part)
        column -= size
    return ""


def _relative(path: str, part: str) -> str:
    """A place within its layer: `attention.q` of the part q in `layers.3.attention.qkv`."""
    layer = re.search(LAYER, path)
    inner = re.sub(r"^.*experts\.\d+\.", "", path[layer.end() :] if layer else path)
    if not part:
        return inner or "model"
    above = inner.rpartition(".")[0]
    return f"{above}.{part}" if above else part


def _first_bad(numbers: Tensor) -> int:
    return int((~numbers.isfinite()).nonzero()[0, -1])


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.numel() > 0


def _ends(dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.5g}"


def _advice(dtype: torch.dtype) -> str:
    if dtype is torch.float16:
        return "Run it with --dtype bfloat16 or float32"
    return "No dtype holds this: see the weights before it, their scales, and whether something there must be clamped"


def _number(pattern: str, path: str) -> int | None:
    found = re.search(pattern, path)
    return None if found is None else int(found[1])
