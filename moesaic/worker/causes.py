"""Why an operation gives numbers that are not finite, though it was given finite ones: its weights, what it was given,
the range of its dtype, the router before it, and the experts beside it."""

import re
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moesaic.experts.routing import Router
from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.reference_moe import linear
from moesaic.layers.base import Layer
from moesaic.models.hf_backend.experts import Experts
from moesaic.worker.findings import Finding, RouterState
from moesaic.worker.products import DAMAGED, Cause, advice_for, ends, first_bad, of_activation, of_experts, of_product
from moesaic.worker.weight_notes import Weights

if TYPE_CHECKING:
    from moesaic.worker.watch import Sight

LAYER = r"(?:^|\.)(\d+)(?:\.|$)"  # the first number of a path
EXPERT = r"experts\.(\d+)(?:\.|$)"
MARGIN = 1e4  # how many squares of what it was given an operation may add up
MOST_NAMES = 4
WITH_WEIGHTS = (  # of the modules in the one that calls them
    *("spread_linear", "gather_linear", "head_linear", "prepare_qkv", "prepare_latent", "prepare_index"),
    *("causal_conv", "gated_delta", "linear_attention", "selective_scan", "ssd_scan", "gated_norm", "norm_heads"),
)
PRODUCTS = ("linear", "gated_linear", "activated_linear")
WORDS = {  # what an operation gives, by which of its outputs; "" for what its module is called
    "add_rms_norm": ("the residual stream before it", ""),
    "add_layer_norm": ("the residual stream before it", ""),
    "prepare_qkv": ("queries",),
    "paged_attention": ("the heads' output",),
    "selected_attention": ("the heads' output",),
    "fused_moe": ("experts",),
    "route": ("weights of experts",),
    "mix": ("sum",),
    "spread_linear": ("queries of experts",),
    "gather_linear": ("output of experts",),
    "head_linear": ("projection of heads",),
}


class Examiner:
    """Knows a model's weights by name, and judges calls of its kernels.

    Attributes:
        weights: all of them.
        routers: path of each router that was asked in this step -> its logits `[T, E]`, ids and weights `[T, k]`.
    """

    def __init__(self, model: Any) -> None:
        self.routers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.weights = Weights(_views_of(model))

    @staticmethod
    def name_of(path: str, op: str, part: int) -> str:
        """What an output is called: `layers.3.attention.o`, `layers.3.attention: queries`."""
        words = WORDS.get(op, ("",))
        word = words[part] if part < len(words) else ""
        return f"{path}: {word}" if word else path or "model"

    def examine(self, sight: "Sight", row: int, position: int | None) -> Finding:
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
            expert=found.expert if found.expert is not None else _number(EXPERT, path),
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
            before=sight.before,
            position=position,
        )

    def _cause(self, sight: "Sight", row: int) -> Cause:
        if sight.kept:
            return _kept(sight, row)
        if sight.site.op == "fused_moe":
            return of_experts(self.weights, sight.site.path, sight.args, sight.kwargs, row)
        if sight.site.op in PRODUCTS:
            return self._of_linear(sight, row)
        ours = sight.site.module.__dict__.get("moesaic")  # experts of a model that transformers computes
        if isinstance(ours, Experts):
            hidden, ids, weights = (arg.reshape(-1, arg.shape[-1]) for arg in sight.args)
            hidden = hidden.float() if ours.backend == "cpu" else hidden
            bounds = {"alpha": ours.activation.alpha, "limit": ours.activation.limit}
            given = hidden, ids, weights, ours.weights, ours.activation.name
            return of_experts(self.weights, sight.site.path, given, bounds, row)
        return self._of_other(sight, row)

    def _of_linear(self, sight: "Sight", row: int) -> Cause:
        """A projection; of one that holds several, the one of the first bad output."""
        site, x, matrix = sight.site, sight.args[0][row], sight.args[1]
        bias = sight.args[2] if len(sight.args) > 2 else None
        column = first_bad(sight.output[row])
        if site.op != "linear":  # the activation is in it: the product is wider, or smaller, than what it gives
            wide = linear(x[None], matrix, bias)[0]
            if wide.isfinite().all():
                return of_activation(wide, _relative(site.path, "activation"))
            column = first_bad(wide)
        part = _part(site, column)
        name = self.weights.find(site.path, part)
        if isinstance(site.module, Router):
            return self._of_router(sight, row, column, name)
        return of_product(self.weights, x, matrix, bias, column, name, _relative(site.path, part), sight.output.dtype)

    def _of_router(self, sight: "Sight", row: int, expert: int, name: str | None) -> Cause:
        logits = sight.output[row].float()
        found = of_product(
            self.weights, sight.args[0][row], sight.args[1], None, expert, name, "router", sight.output.dtype,
            "Compute the router in float32 (--dtype float32), or clamp its logits (`StableRouter`)",
        )  # fmt: skip
        return Cause(
            op="router", cause=f"its logit of expert {expert}: {found.cause}", advice=found.advice, expert=expert,
            largest=found.largest, exact=found.exact, names=found.names, router=_state(logits, logits[:0], logits[:0]),
        )  # fmt: skip

    def _of_other(self, sight: "Sight", row: int) -> Cause:
        """What has no matrix of its own as an argument: norms, attention, scans, sums, tables; or a whole module."""
        site, dtype = sight.site, sight.output.dtype
        name = self.name_of(_relative(site.path, ""), site.op, sight.part)
        bad = [n for n in self._taking_part(site) if self.weights.measure(n).nonfinite]
        if bad:
            note = self.weights.note(bad[0])
            expert = _number(EXPERT, bad[0])
            if expert is None and note.first is not None and len(note.first) > 2:
                expert = note.first[0]  # of a stack of experts
            cause = f"the weight has numbers that are not finite: {note.spoilt}"
            return Cause(op=name, cause=cause, advice=DAMAGED, expert=expert, names=tuple(bad[:MOST_NAMES]))
        given = [float(a.abs().max()) for a in sight.args if _is_rows(a)]
        largest = max((peak for peak in given if isfinite(peak)), default=None)
        if "attention" in site.op:
            return Cause(op=name, largest=largest, cause="queries are finite, kept keys or values are not",
                         advice="See --kv-cache-dtype, and prompts that begin alike")  # fmt: skip
        if site.op == "route":
            return Cause(op="weights of experts", largest=largest, router=self._router(site.path, row),
                         cause="the logits are finite, the weights that are made of them are not",
                         advice="Compute the router in float32, or clamp its logits (`StableRouter`)")  # fmt: skip
        if largest is not None and largest**2 < torch.finfo(dtype).max / MARGIN:
            cause = f"it was given finite numbers, up to {largest:.4g}, and no weight of its own is damaged"
            return Cause(op=name, cause=cause, advice="See what else it reads", largest=largest)
        reaches = "" if largest is None else f": what it was given reaches {largest:.4g}, and {ends(dtype)}"
        return Cause(op=name, cause=f"overflow{reaches}", advice=advice_for(dtype), largest=largest)

    def _taking_part(self, site: Any) -> list[str]:
        """Canonical names of the weights that an operation reads besides its arguments."""
        if site.op in WITH_WEIGHTS:
            return [name for name in self.weights.views if name.startswith(f"{site.path}.")]
        if "attention" in site.op:  # norms of queries and keys, sinks: all others were in products before
            under = (name for name in self.weights.views if name.startswith(f"{site.path}."))
            return [name for name in under if len(self.weights.views[name].shape) == 1]
        own = [name for name, _ in site.module.named_parameters(recurse=False)]
        own += ["weight"] if site.op == "embed" else []
        return [full for full in dict.fromkeys(f"{site.path}.{name}" for name in own) if full in self.weights]

    def _router(self, path: str, row: int) -> RouterState | None:
        """What the last router of the same layer said of a token."""
        layer = re.search(LAYER, path)
        if layer is None:
            return None
        for name, (logits, ids, weights) in self.routers.items():
            if name.startswith(path[: layer.end()]) and row < len(logits):
                return _state(logits[row].float(), weights[row], ids[row])
        return None


def _views_of(model: Any) -> dict[str, Any]:
    """Weights by name, as loading fills them; of a model that transformers computes, also the experts that our kernels
    keep packed."""
    views = {name: view for name, view in model.named_views() if 0 not in view.shape}
    if isinstance(model, Layer):
        return views
    for path, module in model.model.named_modules():
        pages = getattr(module.__dict__.get("moesaic"), "weights", None)
        if not isinstance(pages, PackedExperts):
            continue
        for expert, (wide, down) in enumerate(zip(pages.gate_up, pages.down, strict=True)):
            parts = {"gate": wide.gate_sink(), "up": wide.up_sink()} if wide.gated else {"up": wide.sink()}
            views |= {f"{path}.{expert}.{part}.weight": sink for part, sink in {**parts, "down": down.sink()}.items()}
    return views


def _state(logits: Tensor, weights: Tensor, ids: Tensor) -> RouterState:
    return RouterState(
        lowest=float(logits.min()),
        highest=float(logits.max()),
        probability_sum=float(logits.softmax(-1).sum()),
        experts=[int(e) for e in ids[ids >= 0].tolist()],
        weights=[float(w) for w in weights[ids >= 0].tolist()],
    )


def _kept(sight: "Sight", row: int) -> Cause:
    """Keys or values that a float16 cache cannot hold."""
    query = _relative(sight.site.path, "")
    return Cause(
        op=f"{query}: keys and values as they are kept",
        cause=f"overflow: what is kept of a token is larger than the cache's dtype holds, and {ends(torch.float16)}",
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


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.numel() > 0


def _number(pattern: str, path: str) -> int | None:
    found = re.search(pattern, path)
    return None if found is None else int(found[1])
