"""What a mask is, instead of the mask: transformers composes it of known functions, and a paged kernel wants only their
parameters. A mask that is composed of others is refused where attention is given it, never guessed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.core.errors import UnsupportedError

CAUSAL, AND = "causal_mask_function", "and_masks.<locals>.and_mask"
WINDOW, CHUNK = "sliding_window_overlay.<locals>.inner_mask", "chunked_overlay.<locals>.inner_mask"
# How transformers keeps packed sequences apart; here block tables do.
PACKED = (
    "packed_sequence_mask_function.<locals>.inner_mask",
    "packed_sequence_compatibility_function.<locals>.inner_mask",
    "remap_positions_for_packed_sequence.<locals>.inner_mask",
)


@dataclass(frozen=True)
class Mask:
    """Causal attention, perhaps within a window.

    Attributes:
        window: tokens that a token sees, itself included; None for all.
    """

    window: int | None = None


def describe(*, mask_function: Callable[..., Any], device: Any = None, **_: Any) -> Tensor:
    """transformers' mask interface: a tensor of one NaN that carries its `Mask`, or the reason why there is none.

    Whatever computes with the tensor itself gets NaN, and what it makes of it carries nothing, so no mask is ever
    dropped silently.
    """
    tagged: Any = torch.full((1, 1, 1, 1), float("nan"), device=device)
    tagged.moesaic_mask = _read(mask_function)
    out: Tensor = tagged
    return out


def mask_of(tensor: Tensor | None) -> Mask:
    """What attention was given by `describe`. Raises UnsupportedError."""
    found = getattr(tensor, "moesaic_mask", None)
    if isinstance(found, Mask):
        return found
    reason = found if isinstance(found, str) else "it computes with masks, or does without"
    raise UnsupportedError(f"packed attention does not serve this model: {reason}")


def _read(function: Callable[..., Any]) -> Mask | str:
    window = None
    causal = False
    for name, cells in _parts(function):
        if name == CAUSAL:
            causal = True
        elif name == WINDOW:
            window = int(cells["sliding_window"])
        elif name == CHUNK:
            return "its attention is chunked"
        elif name not in (AND, *PACKED):
            return f"its mask is composed of {name.split('.')[0]}"
    return Mask(window) if causal else "its attention is not causal"


def _parts(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(qualified name, closure) of a function and of all that it is composed of."""
    cells = _closure(function)
    yield function.__qualname__, cells
    for value in cells.values():
        for part in value if isinstance(value, tuple) else (value,):
            if callable(part) and hasattr(part, "__qualname__"):
                yield from _parts(part)


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return dict(zip(names, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))
