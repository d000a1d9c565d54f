"""What may be wrong, each as a change to try on the plain fp32 model: of its spec, or of its weights.

A change is a context: within it the model computes otherwise, behind it as before. Which are worth trying first is
`search`'s matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from moesaic.experts.layer import MoE
from moesaic.layers.norm import Norm
from moesaic.layers.rope import shared_frequencies
from moesaic.models.decoder import Decoder
from moesaic.models.spec import MoESpec, RouterSpec

Kind = Literal["positions", "attention", "router", "experts", "norms", "model", "weights"]
THETAS = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)
PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Hypothesis:
    """One thing that may be wrong.

    Attributes:
        what: that is otherwise with it, in words that follow "with".
        advice: what to change if this is it.
        change: the model, changed for as long as the context is open.
    """

    kind: Kind
    what: str
    advice: str
    change: Callable[[Decoder], AbstractContextManager[None]]


def of_spec(model: Decoder, windows: Sequence[int] = ()) -> list[Hypothesis]:
    """What a spec may say wrong.

    Args:
        windows: lengths from which on something differs, so that they may be one.
    """
    found = [*_positions(model), *_attention(model, windows), *_norms(model), *_model(model)]
    moes = moes_in(model)
    if moes:
        found += [*_router(moes[0].spec.router, moes[0]), *_experts(moes[0].spec)]
    return found


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


def _weights(what: str, advice: str, change: Callable[[Decoder], AbstractContextManager[None]]) -> Hypothesis:
    return Hypothesis("weights", what, advice, change)


def moes_in(model: Decoder) -> list[MoE]:
    """The layers' experts, in order."""
    return [moe for layer in model.layers if (moe := _moe(layer)) is not None]


def layers_of_moes(model: Decoder) -> list[int]:
    """Which layers these are."""
    return [i for i, layer in enumerate(model.layers) if _moe(layer) is not None]


def _moe(layer: Any) -> MoE | None:
    found = layer.mlp if isinstance(layer.mlp, MoE) else layer.shortcut
    return found if isinstance(found, MoE) else None


# ---- weights


def swapped(moes: Sequence[int], experts: Sequence[int] | None = None) -> Callable[[Decoder], AbstractContextManager[None]]:
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
) -> Callable[[Decoder], AbstractContextManager[None]]:
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


def transposed(
    moes: Sequence[int], parts: Sequence[str], experts: Sequence[int] | None = None
) -> Callable[[Decoder], AbstractContextManager[None]]:
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
    return moe.experts.down.shape[1] == moe.experts.down.shape[2]


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


# ---- spec


@contextmanager
def _set(targets: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes with other values, for a while."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in targets]
    try:
        for owner, name, value in targets:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


@contextmanager
def _added(tensors: Sequence[Tensor], amount: float) -> Iterator[None]:
    for tensor in tensors:
        tensor.data.add_(amount)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.data.sub_(amount)


@contextmanager
def _zeroed(tensors: Sequence[Tensor]) -> Iterator[None]:
    kept = [tensor.data.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.data.zero_()
    try:
        yield
    finally:
        for tensor, old in zip(tensors, kept, strict=True):
            tensor.data.copy_(old)


def _mixers(model: Decoder, *fields: str) -> list[Any]:
    """Attentions whose spec has these fields."""
    mixers = [layer.attention for layer in model.layers if layer.attention is not None]
    return [m for m in mixers if all(hasattr(getattr(m, "spec", None), field) for field in fields)]


def _respec(mixers: Sequence[Any], of: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Mixers with specs made of their own."""
    return _set([(mixer, "spec", of(mixer.spec)) for mixer in mixers])


def _positions(model: Decoder) -> Iterator[Hypothesis]:
    turned = [m for m in _mixers(model, "rope") if m.spec.rope is not None]
    if not turned:
        return
    rope = turned[0].spec.rope
    kinds = ("halves", "neighbours") if rope.interleaved else ("neighbours", "halves")
    yield Hypothesis(
        "positions",
        f"rope that turns pairs of {kinds[0]} (the spec says {kinds[1]})",
        f"RopeSpec(interleaved={not rope.interleaved})",
        lambda model: _respec(turned, lambda s: replace(s, rope=replace(s.rope, interleaved=not s.rope.interleaved))),
    )
    for theta in (t for t in THETAS if t != rope.theta):
        yield _turned(turned, f"rope_theta {theta:g} (the spec says {rope.theta:g})", "rope_theta", theta=theta)
    if rope.scaling is not None:
        yield _turned(turned, "rope that is not scaled", "rope_scaling / rope_parameters", scaling=None)
    yield Hypothesis(
        "positions",
        "no rope at all",
        "AttentionSpec(rope=None)",
        lambda model: _respec(turned, lambda s: replace(s, rope=None)),
    )


def _turned(mixers: Sequence[Any], what: str, key: str, **changes: Any) -> Hypothesis:
    def change(model: Decoder) -> AbstractContextManager[None]:
        targets = []
        for mixer in mixers:
            spec = replace(mixer.spec.rope, **changes)
            dim = mixer.inverse_frequencies.shape[0] * 2
            inverse, factor = shared_frequencies(spec, dim, mixer.inverse_frequencies.device)
            targets += [(mixer, "inverse_frequencies", inverse), (mixer, "rope_factor", factor)]
        return _set(targets)

    return Hypothesis("positions", what, f"{key} in config.json", change)


def _attention(model: Decoder, windows: Sequence[int]) -> Iterator[Hypothesis]:
    plain = _mixers(model, "window", "qk_norm", "softcap")
    if not plain:
        return

    def ask(what: str, advice: str, fits: Callable[[Any], bool], of: Callable[[Any], Any]) -> Iterator[Hypothesis]:
        chosen = [m for m in plain if fits(m.spec)]
        if chosen:
            yield Hypothesis("attention", what, advice, lambda model: _respec(chosen, of))

    yield from ask(
        "no norm of queries and keys", "qk_norm=None", lambda s: s.qk_norm is not None, lambda s: replace(s, qk_norm=None)
    )
    yield from ask(
        "queries and keys normed on the other side of rope",
        "qk_norm_last",
        lambda s: s.qk_norm is not None and s.rope is not None,
        lambda s: replace(s, qk_norm_last=not s.qk_norm_last),
    )
    yield from ask(
        "scores scaled by 1 / sqrt(head_dim)",
        "AttentionSpec(scale)",
        lambda s: abs(s.scale - s.head_dim**-0.5) > 1e-9,
        lambda s: replace(s, scale=s.head_dim**-0.5),
    )
    yield from ask("scores not scaled", "AttentionSpec(scale)", lambda s: s.scale != 1.0, lambda s: replace(s, scale=1.0))
    yield from ask("no window", "sliding_window", lambda s: s.window is not None, lambda s: replace(s, window=None))
    for window in windows:
        yield from ask(
            f"a window of {window} tokens",
            "sliding_window",
            lambda s, w=window: s.window != w,
            lambda s, w=window: replace(s, window=w),
        )
    yield from ask(
        "no softcap of scores", "softcap", lambda s: s.softcap is not None, lambda s: replace(s, softcap=None)
    )
    yield from ask("no clipping", "clip_qkv", lambda s: s.clip_qkv is not None, lambda s: replace(s, clip_qkv=None))
    biases = [m.qkv.bias for m in plain if m.qkv.bias is not None]
    if biases:
        yield Hypothesis("attention", "biases of q, k and v ignored", "qkv_bias", lambda model: _zeroed(biases))
    outputs = [m.o.bias for m in plain if m.o.bias is not None]
    if outputs:
        yield Hypothesis("attention", "bias of o ignored", "output_bias", lambda model: _zeroed(outputs))
    sinks = [m for m in plain if m.sinks is not None]
    if sinks:
        yield Hypothesis(
            "attention", "no sinks", "sinks=False", lambda model: _set([(mixer, "sinks", None) for mixer in sinks])
        )


def _norms(model: Decoder) -> Iterator[Hypothesis]:
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    offset = norms[0].spec.offset
    for amount in (-offset,) if offset else (1.0,):
        what = "norms that multiply by their weight" if offset else "norms that multiply by 1 + weight"
        yield Hypothesis(
            "norms",
            what,
            f"NormSpec(offset={offset + amount:g})",
            lambda model, a=amount: _added([n.weight for n in norms], a),
        )
    for eps in (1e-6, 1e-5, 1e-12):
        if norms[0].eps != eps:
            yield Hypothesis(
                "norms",
                f"norms' epsilon {eps:g}",
                "rms_norm_eps",
                lambda model, e=eps: _set([(n, "eps", e) for n in norms]),
            )


def _model(model: Decoder) -> Iterator[Hypothesis]:
    given = model.spec.multipliers
    tries = [("embedding", 1.0), ("embedding", model.spec.hidden_size**0.5), ("logits", 1.0), ("residual", 1.0)]
    for name, value in tries:
        if abs(getattr(given, name) - value) > 1e-9:
            yield Hypothesis(
                "model",
                f"the {name} multiplied by {value:g}",
                f"Multipliers({name}={value:g})",
                lambda model, n=name, v=value: _multiplied(model, n, v),
            )
    if model.spec.logits_softcap is not None:
        yield Hypothesis(
            "model",
            "no softcap of logits",
            "logits_softcap",
            lambda model: _set([(model, "spec", replace(model.spec, logits_softcap=None))]),
        )


def _multiplied(model: Decoder, name: str, value: float) -> AbstractContextManager[None]:
    spec = replace(model.spec, multipliers=replace(model.spec.multipliers, **{name: value}))
    layers = [(layer, "residual_multiplier", spec.multipliers.residual) for layer in model.layers]
    return _set([(model, "spec", spec), *layers])


def _router(router: RouterSpec, moe: MoE) -> Iterator[Hypothesis]:
    def ask(what: str, advice: str, **changes: Any) -> Hypothesis:
        def change(model: Decoder) -> AbstractContextManager[None]:
            return _set(
                [(m, "spec", replace(m.spec, router=replace(m.spec.router, **changes))) for m in moes_in(model)]
            )

        return Hypothesis("router", what, advice, change)

    said = "renormalised" if router.renormalize else "not renormalised"
    other = "not renormalised" if router.renormalize else "renormalised"
    yield ask(
        f"the chosen experts' weights {other} (the spec says {said})",
        f"norm_topk_prob: {str(not router.renormalize).lower()}, or RouterSpec(renormalize={not router.renormalize})",
        renormalize=not router.renormalize,
    )
    for k in (router.top_k + 1, router.top_k - 1, router.top_k + 2, 2 * router.top_k, router.top_k - 2):
        if 1 <= k <= moe.spec.num_choices:
            yield ask(f"top-{k} experts (the spec says {router.top_k})", f"num_experts_per_tok: {k}", top_k=k)
    for scoring in ("softmax", "sigmoid"):
        if scoring != router.scoring:
            yield ask(
                f"{scoring} scores (the spec says {router.scoring})", f'RouterSpec(scoring="{scoring}")', scoring=scoring
            )
    order = "select_then_score" if router.order == "score_then_select" else "score_then_select"
    yield ask(f"the router's order {order}", f'RouterSpec(order="{order}")', order=order)
    for scoring in ("softmax", "sigmoid"):
        if scoring != router.scoring:
            yield ask(
                f"{scoring} scores, weights {other}",
                f'RouterSpec(scoring="{scoring}", renormalize={not router.renormalize})',
                scoring=scoring,
                renormalize=not router.renormalize,
            )
    if router.scale != 1.0:
        yield ask(f"experts' weights not scaled by {router.scale:g}", "routed_scaling_factor: 1.0", scale=1.0)
    if router.num_groups > 1:
        yield ask("no groups of experts", "n_group: 1", num_groups=1, top_groups=1)
    corrected = moe.router.correction is not None
    if corrected:
        yield Hypothesis(
            "router",
            "the choice not corrected",
            "RouterSpec(correction=False)",
            lambda model: _set([(m.router, "correction", None) for m in moes_in(model)]),
        )
    if moe.router.bias is not None:
        yield Hypothesis(
            "router",
            "the router's bias ignored",
            "RouterSpec(bias=False)",
            lambda model: _zeroed([m.router.bias for m in moes_in(model) if m.router.bias is not None]),
        )


def _experts(spec: MoESpec) -> Iterator[Hypothesis]:
    def ask(what: str, advice: str, **changes: Any) -> Hypothesis:
        return Hypothesis(
            "experts",
            what,
            advice,
            lambda model: _set([(m, "spec", replace(m.spec, **changes)) for m in moes_in(model)]),
        )

    for activation in ("silu", "gelu", "gelu_tanh", "relu", "swigluoai"):
        if activation != spec.activation and (spec.gated or activation != "swigluoai"):
            yield ask(f"activation {activation} (the spec says {spec.activation})", "hidden_act", activation=activation)
    side = "output" if spec.weight_on_input else "input"
    yield ask(f"weights on the experts' {side}", "MoESpec(weight_on_input)", weight_on_input=not spec.weight_on_input)
    if spec.output_scale != 1.0:
        yield ask(f"the experts' sum not scaled by {spec.output_scale:g}", "output_scale=1.0", output_scale=1.0)
    if spec.shared is not None:

        def without(model: Decoder) -> AbstractContextManager[None]:
            return _set([(m, "shared", None) for m in moes_in(model)])

        yield Hypothesis("experts", "no shared expert", "MoESpec(shared=None)", without)

