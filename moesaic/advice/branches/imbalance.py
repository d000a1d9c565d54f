"""Do all experts work, and alike?"""

from collections.abc import Callable

from moesaic.advice.branches.common import is_steered
from moesaic.advice.figures import Figures, LayerLoad
from moesaic.advice.tree import Advice, Answer, Branch, Question

MOST_IMBALANCE = 2.0  # busiest expert over the mean
EVEN_ENTROPY = 0.85  # above it an uneven layer has one hot expert, below it a part of the experts does the work
LEAST_UTILIZATION = 0.75


def _uneven(f: Figures) -> Answer:
    layer = _most(f, lambda layer: layer.imbalance)
    if layer is None:
        return _too_few(f)
    text = f"{layer.name}: the busiest expert ({layer.busiest}) gets {layer.imbalance:.2f} times the mean"
    return Answer(layer.imbalance > MOST_IMBALANCE, text)


def _is_wide(f: Figures) -> Answer:
    layer = _most(f, lambda layer: layer.imbalance)
    if layer is None:
        return _too_few(f)
    return Answer(layer.entropy < EVEN_ENTROPY, f"routing entropy of that layer {layer.entropy:.3f} of 1")


def _unused(f: Figures) -> Answer:
    layer = _most(f, lambda layer: -layer.utilization)
    if layer is None:
        return _too_few(f)
    text = f"{layer.name}: {layer.utilization:.0%} of the experts got a token"
    if layer.dead:
        shown = ", ".join(map(str, layer.dead[:8])) + (", ..." if len(layer.dead) > 8 else "")
        text += f" (none: {shown})"
    return Answer(layer.utilization < LEAST_UTILIZATION, text)


def _most(f: Figures, key: Callable[[LayerLoad], float]) -> LayerLoad | None:
    return max(f.telling_layers, key=key, default=None)


def _too_few(f: Figures) -> Answer:
    if not f.layers:
        return Answer(None, "no figures of experts: the model has none, or none that this server counts")
    return Answer(None, "too few tokens yet to tell an uneven router from chance")


LOOK_FIRST = Advice(
    "Look at what steers first: GET /v1/moe/routing lists it. Switch it off (POST /v1/moe/routing with "
    '{"profile": null}, or a start without --moe-routing-func and --moe-top-k) and compare the load.'
)
IMBALANCE = Branch(
    "imbalance",
    [
        Question(
            f"Does some layer's busiest expert get over {MOST_IMBALANCE:g} times the mean?",
            _uneven,
            yes=Question(
                "Is routing steered for all requests?",
                is_steered,
                yes=LOOK_FIRST,
                no=Question(
                    f"Is the whole layer uneven (entropy below {EVEN_ENTROPY:g}), rather than one expert?",
                    _is_wide,
                    yes=Advice(
                        "This traffic uses a part of the experts. Look at the top-k weights of some requests "
                        "(return_routed_experts): where the first choice has nearly all weight, the router is sure, "
                        "and fewer experts do (routing.top_k); where weights are nearly equal, a router temperature "
                        "above 1 (routing.temperature) or a bias spreads tokens. Both change answers: compare scores "
                        "first (docs/steer.md). On one machine an uneven load costs no time by itself; where experts "
                        "are spread over ranks it asks for another placement."
                    ),
                    no=Advice(
                        "One expert is hot: GET /v1/moe/experts shows which, by tag if requests have tags. A negative "
                        "routing.bias for it moves tokens elsewhere, at the price of other answers. On one machine a "
                        "hot expert costs no time by itself, for its weights are read once a step; where experts are "
                        "spread over ranks it is the first to be placed alone or twice."
                    ),
                ),
            ),
        ),
        Question(
            f"Do fewer than {LEAST_UTILIZATION:.0%} of some layer's experts get a token?",
            _unused,
            yes=Question(
                "Is routing steered for all requests?",
                is_steered,
                yes=LOOK_FIRST,
                no=Advice(
                    "Record what this traffic uses (moesaic profile) and try without the rest: moesaic prune writes a "
                    "routing profile that bans them by layer, and measures what that does to answers."
                ),
            ),
        ),
    ],
)
