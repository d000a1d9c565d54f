"""Ways in which a model is changed for as long as a context is open: attributes, specs and tensors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from moesaic.models.decoder import Decoder


@contextmanager
def set_to(targets: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
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
def added(tensors: Sequence[Tensor], amount: float) -> Iterator[None]:
    for tensor in tensors:
        tensor.data.add_(amount)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.data.sub_(amount)


@contextmanager
def zeroed(tensors: Sequence[Tensor]) -> Iterator[None]:
    kept = [tensor.data.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.data.zero_()
    try:
        yield
    finally:
        for tensor, old in zip(tensors, kept, strict=True):
            tensor.data.copy_(old)


def mixers_with(model: Decoder, *fields: str) -> list[Any]:
    """Attentions whose spec has these fields."""
    mixers = [layer.attention for layer in model.layers if layer.attention is not None]
    return [m for m in mixers if all(hasattr(getattr(m, "spec", None), field) for field in fields)]


def respec(mixers: Sequence[Any], of: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Mixers with specs made of their own."""
    return set_to([(mixer, "spec", of(mixer.spec)) for mixer in mixers])


# The same with the model last, for `partial`: a hypothesis made in a loop keeps the values of its own round.


def set_in(targets: Sequence[tuple[Any, str, Any]], model: Decoder) -> AbstractContextManager[None]:
    return set_to(targets)


def added_to(tensors: Sequence[Tensor], amount: float, model: Decoder) -> AbstractContextManager[None]:
    return added(tensors, amount)


def respec_in(mixers: Sequence[Any], model: Decoder, **changes: Any) -> AbstractContextManager[None]:
    return respec(mixers, lambda spec: replace(spec, **changes))
