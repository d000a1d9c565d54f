"""From our parameters back to a checkpoint's tensors: weight rules read the other way.

What loading takes out of a tensor (a part of its rows, every other row, the transpose) is put back to where it lay.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.core.errors import UnsupportedError
from moesaic.weights.plan import expected_shapes
from moesaic.weights.rules import AnyRule, Place, Rule, RuleBook, Shape, View, numberless


@dataclass(frozen=True)
class Assembly:
    """A tensor to write: its shape, and the parameters that lie in it."""

    shape: Shape
    parts: tuple[tuple[str, Place], ...]


def assemblies(
    parameters: Mapping[str, Shape], rules: Iterable[AnyRule], usual: Collection[str] = ()
) -> dict[str, Assembly]:
    """The tensors that hold all parameters.

    Args:
        usual: names without numbers (`rules.numberless`) that are taken where rules know several spellings; of others
            the first of those that speak of a parameter most plainly: a rule for `q_a_norm` before one for any
            `{n}_norm`.

    Raises:
        UnsupportedError: rows of a tensor would belong to no parameter, so that nothing says what they are.
    """
    plainly = sorted(rules, key=_words)
    book = RuleBook(plainly, parameters)
    first: dict[str, list[Place]] = {}
    parts: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for name, shape in parameters.items():
        places = book.locate(name, shape)
        if not places:
            raise UnsupportedError(f"no rule of this architecture says where {name} lies in a checkpoint")
        place = next((place for place in places if numberless(place.source) in usual), places[0])
        first[name] = [place]
        parts[place.source].append((name, place))
    shapes = expected_shapes(first)
    for source, inside in parts.items():
        filled = sum(_numbers(parameters[name]) for name, _ in inside)
        if filled != _numbers(shapes[source]):
            raise UnsupportedError(
                f"{source} {list(shapes[source])} holds more than the parameters of this model, which are "
                f"{filled} of its {_numbers(shapes[source])} numbers: its architecture cannot be written back"
            )
    return {source: Assembly(shapes[source], tuple(inside)) for source, inside in parts.items()}


def assemble(assembly: Assembly, dtype: torch.dtype, parameter: Callable[[str], Tensor]) -> Tensor:
    """The tensor, of parameters that are read one at a time."""
    out = torch.empty(assembly.shape, dtype=dtype)
    for name, place in assembly.parts:
        part = out[place.index]
        value = parameter(name)
        if place.view is None:
            part.copy_(value)
        else:
            _put(place.view, part, value)
    return out


def _words(rule: AnyRule) -> int:
    """Words that a rule leaves open."""
    return len(re.findall(r"\{(?!l}|e})\w+\}", rule.target)) if isinstance(rule, Rule) else 0


def _put(view: View, part: Tensor, value: Tensor) -> None:
    """Write `value` to where `view.take` would find it in `part`."""
    if view.turns is not None:
        first, count, every = view.turns
        part.unflatten(0, (-1, every))[:, first : first + count].copy_(value.unflatten(0, (-1, count)))
    elif view.transposed:
        part[..., view.cut or slice(None)].copy_(value.T)
    else:
        part[view.cut or slice(None)].copy_(value)


def _numbers(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
