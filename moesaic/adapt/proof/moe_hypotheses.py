"""Hypotheses about routers and experts: what a config or a draft may say wrong of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from moesaic.adapt.proof.changes import set_to, zeroed
from moesaic.adapt.proof.hypotheses import Hypothesis, moes_in
from moesaic.experts.layer import MoE
from moesaic.models.decoder import Decoder
from moesaic.models.spec import MoESpec, RouterSpec


def of_router(router: RouterSpec, moe: MoE) -> Iterator[Hypothesis]:
    """What may be wrong with every router, by the first."""

    def ask(what: str, advice: str, **changes: Any) -> Hypothesis:
        def change(model: Decoder) -> AbstractContextManager[None]:
            return set_to(
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
            lambda model: set_to([(m.router, "correction", None) for m in moes_in(model)]),
        )
    if moe.router.bias is not None:
        yield Hypothesis(
            "router",
            "the router's bias ignored",
            "RouterSpec(bias=False)",
            lambda model: zeroed([m.router.bias for m in moes_in(model) if m.router.bias is not None]),
        )


def of_experts(spec: MoESpec) -> Iterator[Hypothesis]:
    """What may be wrong with all experts, by the first layer's."""

    def ask(what: str, advice: str, **changes: Any) -> Hypothesis:
        return Hypothesis(
            "experts",
            what,
            advice,
            lambda model: set_to([(m, "spec", replace(m.spec, **changes)) for m in moes_in(model)]),
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
            return set_to([(m, "shared", None) for m in moes_in(model)])

        yield Hypothesis("experts", "no shared expert", "MoESpec(shared=None)", without)
