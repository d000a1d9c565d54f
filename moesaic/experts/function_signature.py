"""What a routing function's own definition tells of it: which signature it has, and its source."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Literal, get_type_hints

from moesaic.core.errors import ConfigError
from moesaic.experts.function_types import RoutingInput

Signature = Literal["simple", "full"]


def signature_of(function: Callable[..., Any], name: str) -> Signature:
    """The full signature has one parameter, the simple one two; an annotation RoutingInput says it too.

    Raises:
        ConfigError: neither.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ConfigError(f"the routing function {name!r} does not tell its parameters: give signature=") from None
    hints: dict[str, Any] = {}
    with suppress(Exception):  # annotations may name what cannot be found; the number of parameters counts then
        hints = get_type_hints(function)
    if any(hints.get(p.name) is RoutingInput for p in parameters):
        return "full"
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        places = []
    if len(places) >= 2 and len(needed) <= 2:
        return "simple"
    if len(places) == 1:
        return "full"
    raise ConfigError(
        f"the routing function {name!r} must take (scores, domain_tags), or one RoutingInput; "
        f"its parameters are {inspect.signature(function)}"
    )


def source_hash(function: Callable[..., Any]) -> str:
    """16 hexadecimal digits of a function's source, or of its class's, or of its name where there is none."""
    for target in (function, type(function)):
        with suppress(OSError, TypeError):
            return sha256(inspect.getsource(target).encode()).hexdigest()[:16]
    return sha256(repr(getattr(function, "__qualname__", type(function).__qualname__)).encode()).hexdigest()[:16]
