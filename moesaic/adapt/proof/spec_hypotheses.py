"""Hypotheses about the spec: what a config or a draft may say wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from moesaic.adapt.proof.hypotheses import Hypothesis, moes_in
from moesaic.experts.layer import MoE
from moesaic.layers.norm import Norm
from moesaic.layers.rope import shared_frequencies
from moesaic.models.decoder import Decoder
from moesaic.models.spec import MoESpec, RouterSpec

THETAS = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)
EPSILONS = (1e-6, 1e-5, 1e-12, 1e-8, 1e-3, 1e-2)  # of norms


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
        "no norm of queries and keys",
        "qk_norm=None",
        lambda s: s.qk_norm is not None,
        lambda s: replace(s, qk_norm=None),
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
    yield from ask(
        "scores not scaled", "AttentionSpec(scale)", lambda s: s.scale != 1.0, lambda s: replace(s, scale=1.0)
    )
    yield from ask("no window", "sliding_window", lambda s: s.window is not None, lambda s: replace(s, window=None))
    for window in windows:
        yield Hypothesis(
            "attention",
            f"a window of {window} tokens",
            f"sliding_window: {window}",
            partial(_respec_in, plain, window=window),
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
            partial(_added_to, [n.weight for n in norms], amount),
        )
    for eps in (eps for eps in EPSILONS if eps != norms[0].eps):
        yield Hypothesis(
            "norms",
            f"norms' epsilon {eps:g} (the spec says {norms[0].eps:g})",
            f"rms_norm_eps: {eps:g}",
            partial(_set_in, list(_with_epsilon(model, eps))),
        )


def _with_epsilon(model: Decoder, eps: float) -> Iterator[tuple[Any, str, Any]]:
    """All norms, those within attention and what takes its place too."""
    for module in model.modules():
        for name in ("eps", "norm_eps"):
            if isinstance(getattr(module, name, None), float):
                yield module, name, eps
    for mixer in _mixers(model, "norm_eps"):
        yield mixer, "spec", replace(mixer.spec, norm_eps=eps)


def _model(model: Decoder) -> Iterator[Hypothesis]:
    given = model.spec.multipliers
    tries = [("embedding", 1.0), ("embedding", model.spec.hidden_size**0.5), ("logits", 1.0), ("residual", 1.0)]
    for name, value in tries:
        if abs(getattr(given, name) - value) > 1e-9:
            yield Hypothesis(
                "model",
                f"the {name} multiplied by {value:g}",
                f"Multipliers({name}={value:g})",
                partial(_multiplied, name=name, value=value),
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
                f"{scoring} scores (the spec says {router.scoring})",
                f'RouterSpec(scoring="{scoring}")',
                scoring=scoring,
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


def _set_in(targets: Sequence[tuple[Any, str, Any]], model: Decoder) -> AbstractContextManager[None]:
    return _set(targets)


def _added_to(tensors: Sequence[Tensor], amount: float, model: Decoder) -> AbstractContextManager[None]:
    return _added(tensors, amount)


def _respec_in(mixers: Sequence[Any], model: Decoder, **changes: Any) -> AbstractContextManager[None]:
    return _respec(mixers, lambda spec: replace(spec, **changes))
