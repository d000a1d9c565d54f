"""Routed experts as clients get them, and how much of them."""

from moesaic.core.errors import RequestError
from moesaic.core.outputs import CompletionOutput
from moesaic.core.routes import RoutedExperts
from moesaic.core.routing import MoeShape
from moesaic.entrypoints.server.replies import RoutedExpertsReply

MAX_VALUES = 4_000_000  # ids of a prompt, in a reply; as JSON some 50 MB with their weights
DECIMALS = 6


def check_size(shape: MoeShape | None, prompt_tokens: int) -> None:
    """Raise RequestError if the routes of so many prompt tokens are more than one reply should hold."""
    values = prompt_tokens * sum(layer.top_k for layer in shape.layers) if shape is not None else 0
    if values > MAX_VALUES:
        raise RequestError(
            f"return_routed_experts: the prompt's {prompt_tokens} tokens have {values} routes, and a reply holds "
            f"{MAX_VALUES}: record them with POST /v1/moe/profile/start, or use the Python API",
            "return_routed_experts",
        )


def routed_experts(part: CompletionOutput) -> RoutedExpertsReply | None:
    """What `part` tells of routes; None where it tells nothing, or was not asked to."""
    routes: RoutedExperts | None = part.routed_experts
    if routes is None or not routes.pieces:
        return None
    weights = routes.weights.astype("f8").round(DECIMALS)
    return RoutedExpertsReply(routes.layers, routes.start, routes.ids.tolist(), weights.tolist())
