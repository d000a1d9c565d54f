"""What may be wrong, each as a change to try on the plain fp32 model: of its spec, or of its weights.

A change is a context: within it the model computes otherwise, behind it as before. Which are worth trying first is
`search`'s matter; they are made of `changes`, in `spec_hypotheses` (with `attention_hypotheses` and `moe_hypotheses`)
and in `weight_hypotheses`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from moesaic.experts.layer import MoE
from moesaic.models.decoder import Decoder

Kind = Literal["positions", "attention", "router", "experts", "norms", "model", "weights"]
Change = Callable[[Decoder], AbstractContextManager[None]]


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
    change: Change


def moes_in(model: Decoder) -> list[MoE]:
    """The layers' experts, in order."""
    return [moe for layer in model.layers if (moe := _moe(layer)) is not None]


def layers_of_moes(model: Decoder) -> list[int]:
    """Which layers these are."""
    return [i for i, layer in enumerate(model.layers) if _moe(layer) is not None]


def _moe(layer: Any) -> MoE | None:
    found = layer.mlp if isinstance(layer.mlp, MoE) else layer.shortcut
    return found if isinstance(found, MoE) else None
