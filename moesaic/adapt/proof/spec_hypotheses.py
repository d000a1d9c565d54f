"""Hypotheses about the spec: what a config or a draft may say wrong."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from moesaic.adapt.proof.attention_hypotheses import of_attention, of_positions
from moesaic.adapt.proof.changes import added_to, mixers_with, set_in, set_to
from moesaic.adapt.proof.hypotheses import Hypothesis, moes_in
from moesaic.adapt.proof.moe_hypotheses import of_experts, of_router
from moesaic.layers.norm import Norm
from moesaic.models.decoder import Decoder

EPSILONS = (1e-6, 1e-5, 1e-12, 1e-8, 1e-3, 1e-2)  # of norms


def of_spec(model: Decoder, windows: Sequence[int] = ()) -> list[Hypothesis]:
    """What a spec may say wrong.

    Args:
        windows: lengths from which on something differs, so that they may be one.
    """
    found = [*of_positions(model), *of_attention(model, windows), *_norms(model), *_model(model)]
    moes = moes_in(model)
    if moes:
        found += [*of_router(moes[0].spec.router, moes[0]), *of_experts(moes[0].spec)]
    return found


def _norms(model: Decoder) -> Iterator[Hypothesis]:
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    offset = norms[0].spec.offset
    for amount in (-offset,) if offset else (1.0,):
        what = "norms that multiply by their weight" if offset else "norms that multiply by 1 + weight"
        yield Hypothesis(
            "norms",
            what,
            f"NormSpec(offset={offset + amount:g})",
            partial(added_to, [n.weight for n in norms], amount),
        )
    for eps in (eps for eps in EPSILONS if eps != norms[0].eps):
        yield Hypothesis(
            "norms",
            f"norms' epsilon {eps:g} (the spec says {norms[0].eps:g})",
            f"rms_norm_eps: {eps:g}",
            partial(set_in, list(_with_epsilon(model, eps))),
        )


def _with_epsilon(model: Decoder, eps: float) -> Iterator[tuple[Any, str, Any]]:
    """All norms, those within attention and what takes its place too."""
    for module in model.modules():
        for name in ("eps", "norm_eps"):
            if isinstance(getattr(module, name, None), float):
                yield module, name, eps
    for mixer in mixers_with(model, "norm_eps"):
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
            lambda model: set_to([(model, "spec", replace(model.spec, logits_softcap=None))]),
        )


def _multiplied(model: Decoder, name: str, value: float) -> AbstractContextManager[None]:
    spec = replace(model.spec, multipliers=replace(model.spec.multipliers, **{name: value}))
    layers = [(layer, "residual_multiplier", spec.multipliers.residual) for layer in model.layers]
    return set_to([(model, "spec", spec), *layers])
