"""A model's weights as they lie in memory: what is not finite, how large they are, which stand apart or repeat others.

Numbers are those that kernels compute with, so that of a quantised weight a wrong scale shows.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor

from moesaic.weights.norms import FEWEST, outliers
from moesaic.weights.rules import numberless
from moesaic.worker.findings import WeightFault, WeightNote

MOST_NEIGHBOURS = 12
PIECE = 1 << 22  # numbers that are looked at together


class Measure:
    """Of one weight.

    Attributes:
        nonfinite: how many numbers are NaN or infinite.
        first: where the first of these is; None where there is none.
        rms: root mean square of the others.
    """

    def __init__(self, view: Any) -> None:
        self.nonfinite, squares, count, start = 0, 0.0, 0, 0
        self.first: tuple[int, ...] | None = None
        for piece in pieces(view):
            norm, numbers, rows = _norm(piece), piece.numel(), len(piece)
            if not norm < torch.inf:
                good = piece.isfinite()
                if self.first is None:
                    row, *rest = (~good).nonzero()[0].tolist()
                    self.first = row + start, *rest
                self.nonfinite += numbers - (numbers := int(good.sum()))
                norm = _norm(piece[good]) if numbers else 0.0
            squares, count, start = squares + norm**2, count + numbers, start + rows
        self.rms = (squares / count) ** 0.5 if count else 0.0


class Weights:
    """All weights of a model by their canonical names."""

    def __init__(self, views: Mapping[str, Any]) -> None:
        self.views = views
        self._measures: dict[str, Measure] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.views

    def measure(self, name: str) -> Measure:
        """What one weight's numbers are like."""
        if name not in self._measures:
            self._measures[name] = Measure(self.views[name])
        return self._measures[name]

    def find(self, path: str, part: str) -> str | None:
        """The canonical name of a weight in a module: its own, or that of a part which stands beside the module. Of a
        path, a layer that only holds others may not be in the name."""
        parts = path.split(".")
        shorter = [[*parts[:i], *parts[i + 1 :]] for i in range(len(parts) - 1)]
        for inside in (parts, *shorter):
            for named in ([*inside, part] if part else inside, [*inside[:-1], part]):
                if (name := ".".join([*named, "weight"])) in self.views:
                    return name
        return None

    def note(self, name: str) -> WeightNote:
        """A weight beside its neighbours: the same in other layers and experts."""
        own, own_numbers = self.measure(name), _numbers(name)
        same = [other for other in self._alike[numberless(name)] if other != name]
        same.sort(key=lambda other: sum(a != b for a, b in zip(own_numbers, _numbers(other), strict=True)))
        others = [self.measure(other).rms for other in same[:MOST_NEIGHBOURS]]
        usual = median(others) if others else None
        return WeightNote(name=name, nonfinite=own.nonfinite, first=own.first, rms=own.rms, usual=usual)

    def faults(self) -> list[WeightFault]:
        """All that no training leaves behind: numbers that are not finite, weights that are far from their kind or
        zero, and experts that repeat others."""
        found = []
        for name in self.views:
            measure = self.measure(name)
            if measure.nonfinite:
                text = f"{measure.nonfinite} numbers are not finite, the first at {list(measure.first or ())}"
                found.append(WeightFault(name, "not finite", text))
        return [*found, *self._absurd(), *self._repeated()]

    def _absurd(self) -> Iterator[WeightFault]:
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, view in self.views.items():
            if len(view.shape) > 1:
                groups[_layer(name), numberless(name)].append(name)
        for (layer, _), names in groups.items():
            if len(names) > FEWEST:
                yield from self._apart(names, bool(layer))

    def _apart(self, names: list[str], experts: bool) -> Iterator[WeightFault]:
        """Those of one kind that are zero, or of a size far from the others'."""
        sizes = {name: self.measure(name).rms for name in names}
        for name, size in sizes.items():
            if size == 0.0 < median(sizes.values()) and not self.measure(name).nonfinite:
                yield WeightFault(name, "zero", "all numbers are zero, and those of its kind are not")
        for name, ratio in outliers(sizes, experts):
            told = f"root mean square {sizes[name]:.3g}, {ratio:.3g} times the median of its kind"
            yield WeightFault(name, "absurd norm", told)

    def _repeated(self) -> Iterator[WeightFault]:
        """Experts' weights that equal another's of the same layer."""
        known: dict[tuple[str, str, float], list[str]] = defaultdict(list)
        for name, view in self.views.items():
            rms = self.measure(name).rms
            if ".experts." not in name or len(view.shape) < 2 or rms == 0.0:
                continue
            before = known[_layer(name), numberless(name), rms]
            twin = next((other for other in before if _equal(self.views[other], view)), None)
            if twin is not None:
                yield WeightFault(name, "duplicate", f"equal to {twin}")
            before.append(name)

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """The names that differ in numbers alone."""
        alike: dict[str, list[str]] = defaultdict(list)
        for name in self.views:
            alike[numberless(name)].append(name)
        return alike


def pieces(view: Any) -> Iterator[Tensor]:
    """A weight, some rows at a time, as numbers: of a tensor, or of where loading fills a packed matrix."""
    view = getattr(view, "first", view)  # of two that take the same, one
    rows = max(1, PIECE // max(1, _size(view.shape[1:])))
    if isinstance(view, Tensor):
        yield from (piece.detach() for piece in view.split(rows))
        return
    for start in range(0, view.shape[0], rows):
        yield view.rows(start, min(start + rows, view.shape[0])).unpack()


def _equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(pieces(first), pieces(second), strict=True))


def _norm(piece: Tensor) -> float:
    return float(torch.linalg.vector_norm(piece, dtype=torch.float64))


def _size(shape: Any) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _layer(name: str) -> str:
    """What stands before the experts in a name."""
    return name.rpartition(".experts.")[0]


def _numbers(name: str) -> list[str]:
    return [part for part in name.split(".") if part.isdecimal()]
