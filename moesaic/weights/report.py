"""What loading saw of the weights that it read: numbers that are none, experts that are the same, weights of zeros.
Torch-free."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING

from moesaic.weights.plan import list_misses

if TYPE_CHECKING:
    from moesaic.weights.scan import Scan

EXPERT = re.compile(r"(?P<layer>.+)\.experts\.(?P<expert>\d+)\.(?P<part>.+)")
DAMAGED = "the checkpoint is damaged, or was converted to a dtype that is too narrow"
MAX_LISTED = 20  # weights and groups of experts that a message spells out


@dataclass(frozen=True)
class NotFinite:
    """A weight that holds NaN or infinity.

    Attributes:
        parameter, tensor: its canonical name, and that of the checkpoint's tensor.
        count, size: how many of how many numbers (of a quantised weight: scales and offsets).
        first: where the first of them is in the parameter.
    """

    parameter: str
    tensor: str
    count: int
    size: int
    first: tuple[int, ...]

    def __str__(self) -> str:
        tensor = "" if self.tensor == self.parameter else f" (tensor {self.tensor})"
        return f"{said(self.parameter)}{tensor}: {self.count} of {self.size} numbers, the first at {list(self.first)}"


@dataclass(frozen=True)
class SameExperts:
    """Experts of one layer whose weights are all equal.

    Attributes:
        layer: such as `layers.1.mlp`.
    """

    layer: str
    experts: tuple[int, ...]

    def __str__(self) -> str:
        *others, last = map(str, self.experts)
        return f"{self.layer}: experts {', '.join(others)} and {last} are the same"


@dataclass(frozen=True)
class LoadReport:
    """What loading saw. Weights that came from the cache of packed weights are not in it.

    Attributes:
        not_finite: weights with NaN or infinity.
        same_experts: experts that repeat others of their layer.
        blank: matrices of zeros, by canonical name.
        norms: canonical name -> Frobenius norm of what was read; NaN of what is kept in its own codes.
    """

    not_finite: tuple[NotFinite, ...] = ()
    same_experts: tuple[SameExperts, ...] = ()
    blank: tuple[str, ...] = ()
    norms: Mapping[str, float] = field(default_factory=dict)

    @property
    def suspicious(self) -> bool:
        """Whether something is in it that a sound checkpoint hardly has."""
        return bool(self.not_finite or self.same_experts or self.blank)

    def refusal(self, where: str) -> str:
        """Why a checkpoint with numbers that are none is not loaded."""
        return "\n".join(
            [
                f"{where}: {len(self.not_finite)} weight{'s hold' if len(self.not_finite) > 1 else ' holds'} NaN or "
                f"infinity, so {DAMAGED} (--diagnose loads it all the same, to look for what they "
                "do; convert takes it with --allow-nonfinite):",
                *_listed(self.not_finite),
            ]
        )

    def warnings(self, where: str) -> list[str]:
        """A message for each kind of thing that is hardly meant."""
        found = []
        if self.same_experts:
            lines = _listed(self.same_experts)
            found.append(f"{where}: experts repeat each other, as in a damaged checkpoint:\n" + "\n".join(lines))
        if self.blank:
            lines = list_misses(
                "matrices hold nothing but zeros", list(self.blank), lambda name: in_words(name) or "all of it"
            )
            found.append(f"{where}: as in a checkpoint that was not filled:\n" + "\n".join(lines))
        return found


def said(parameter: str) -> str:
    """A canonical name, with layer and expert in words where it has them."""
    place = in_words(parameter)
    return f"{parameter} [{place}]" if place else parameter


def in_words(parameter: str) -> str:
    """Layer and expert of a canonical name in words, where it has them."""
    layer, expert = re.search(r"(?:^|\.)layers\.(\d+)\.", parameter), EXPERT.fullmatch(parameter)
    words = ([f"layer {layer[1]}"] if layer else []) + ([f"expert {expert['expert']}"] if expert else [])
    return ", ".join(words)


def not_finite(parameter: str, tensor: str, scan: "Scan", shape: tuple[int, ...]) -> NotFinite:
    """What a scan of a whole parameter found, of numbers that are none."""
    return NotFinite(parameter, tensor, scan.nonfinite, _size(shape), _place(scan.first, shape))


def report_of(
    scans: "Mapping[str, Scan]", shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, str]
) -> LoadReport:
    """What the scans of all parameters come to, in the order of `shapes`.

    Args:
        scans: by canonical name; flat indices are the parameter's.
        tensors: canonical name -> the checkpoint's tensor.
    """
    scans = {name: scans[name] for name in shapes if name in scans}
    bad = [not_finite(name, tensors[name], scan, shapes[name]) for name, scan in scans.items() if scan.nonfinite]
    blank = [name for name, scan in scans.items() if scan.blank and len(shapes[name]) > 1]
    norms = {name: sqrt(scan.squares) for name, scan in scans.items()}
    return LoadReport(tuple(bad), tuple(_same_experts(scans)), tuple(blank), norms)


def _same_experts(scans: "Mapping[str, Scan]") -> list[SameExperts]:
    layers: dict[str, dict[int, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    blank = set()
    for name, scan in scans.items():
        found = EXPERT.fullmatch(name)
        if found is not None:
            layers[found["layer"]][int(found["expert"])].append((found["part"], scan.digest))
            if scan.blank and found["part"].endswith("weight"):
                blank.add((found["layer"], int(found["expert"])))  # told of as such
    same = []
    for layer, experts in layers.items():
        alike: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for expert in sorted(experts):
            if (layer, expert) not in blank:
                alike[tuple(sorted(experts[expert]))].append(expert)
        same += [SameExperts(layer, tuple(group)) for group in alike.values() if len(group) > 1]
    return same


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _place(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place = []
    for extent in reversed(shape):
        flat, at = divmod(flat, extent)
        place.append(at)
    return tuple(reversed(place))


def _listed(found: tuple[object, ...]) -> list[str]:
    more = [f"  ... and {len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []
    return [f"  {each}" for each in found[:MAX_LISTED]] + more
