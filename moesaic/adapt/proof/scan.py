"""Stage 0: every tensor is accounted for, and no weight is what no training leaves behind.

Read once, a piece at a time: NaN and infinity, experts that are all zero, experts that are copies of others, norms that
are far from those of their kind.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.adapt.proof.results import Stage
from moesaic.core.errors import CheckpointError
from moesaic.models.load import read_config
from moesaic.models.naming import rules_of
from moesaic.models.parameters import parameter_shapes
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.weights.codecs import decoded
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.loader import refuse_dtypes
from moesaic.weights.norms import outliers
from moesaic.weights.plan import Copy, LoadPlan, plan_load
from moesaic.weights.rules import Shape, numberless
from moesaic.weights.scan import Scan, scan_numbers
from moesaic.weights.sources import Source, open_source
from moesaic.weights.staging import Piece, Staging

PIECE = 1 << 22  # numbers of a tensor that are looked at together
MOST_LISTED = 12
EXPERT = re.compile(r"layers\.(\d+)\.(?:mlp|shortcut)\.experts\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Seen:
    """What is known of one parameter once it was read.

    Attributes:
        what: its numbers that are not finite are, "NaN" or "infinite".
        norm: root mean square of the others.
    """

    scan: Scan
    what: str
    norm: float


@dataclass(frozen=True)
class Accounts:
    """A checkpoint whose tensors fill the model exactly."""

    source: Source
    plan: LoadPlan
    shapes: Mapping[str, Shape]

    @property
    def num_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def account(path: str, architecture: Architecture, spec: ModelSpec, load_format: Any = "auto") -> Accounts:
    """Match tensors and parameters, before any is read.

    Raises:
        CheckpointError: with all that is missing, superfluous or misshaped; or what file is damaged.
    """
    source = decoded(open_source(path, load_format), read_config(path))
    shapes = parameter_shapes(spec)
    rules = rules_of(architecture, spec, source.naming)
    plan = plan_load(shapes, rules, {name: info.shape for name, info in source.tensors.items()}, path)
    refuse_dtypes(source, plan.copies, path)
    return Accounts(source, plan, shapes)


def scan(accounts: Accounts, wanted: Callable[[str], bool], tick: Callable[[str], None]) -> Stage:
    """Read every parameter that is `wanted`, and say what cannot be right."""
    source, staging = accounts.source, Staging(accounts.source)
    place = {name: i for i, name in enumerate(source.tensors)}
    copies = sorted((c for c in accounts.plan.copies if wanted(c.target)), key=lambda c: place[c.source])
    problems, seen = [], {}
    for i, copy in enumerate(copies):
        if i % 64 == 0:
            tick(f"reading weights, {i} of {len(copies)} parameters")
        seen[copy.target] = _look(staging, source, copy, accounts.shapes[copy.target])
    problems += [
        f"{told(name)}: {one.scan.nonfinite} of its numbers are {one.what}"
        for name, one in seen.items()
        if one.scan.nonfinite
    ]
    problems += _dead(seen)
    problems += _duplicated(seen, {c.target: c for c in copies}, staging, accounts)
    problems += _far(seen, accounts.shapes)
    read = f"{len(source.tensors)} tensors fill {len(accounts.shapes)} parameters"
    if len(accounts.plan.zeros):
        read += f", {len(accounts.plan.zeros)} are zero for want of one"
    status = "failed" if problems else "passed"
    listed = problems[:MOST_LISTED] + ([f"... and {len(problems) - MOST_LISTED} more"] * (len(problems) > MOST_LISTED))
    summary = f"{read}; {len(problems)} weights cannot be right" if problems else f"{read}; their numbers are in order"
    return Stage(0, status, "the checkpoint itself", summary, tuple(listed))  # type: ignore[arg-type]


def refused(error: CheckpointError) -> Stage:
    """The stage of a checkpoint that does not fill the model."""
    first, *rest = str(error).splitlines()
    return Stage(0, "failed", "the checkpoint itself", first, tuple(line.rstrip() for line in rest) or (first,))


def told(name: str) -> str:
    """A parameter in words: `layer 1, expert 3, gate`."""
    found = EXPERT.fullmatch(name)
    if found is not None:
        return f"layer {found[1]}, expert {found[2]}, {found[3]}"
    layer = re.match(r"layers\.(\d+)\.(.+)", name)
    return f"layer {layer[1]}, {layer[2]}" if layer else name


def _look(staging: Staging, source: Source, copy: Copy, shape: Shape) -> Seen:
    found, what, start = None, "", 0
    for piece in _pieces(staging, source, copy, shape):
        one = scan_numbers(piece)
        if one.nonfinite and not what:
            what = "NaN" if bool(piece.isnan().any()) else "infinite"
        found = one if found is None else found.then(one, start)
        start += piece.numel()
    assert found is not None
    count = start - found.nonfinite
    return Seen(found, what, (found.squares / count) ** 0.5 if count else 0.0)


def _pieces(staging: Staging, source: Source, copy: Copy, shape: Shape) -> Iterator[Tensor]:
    """A parameter, some rows at a time where it lies row after row."""
    if copy.view is not None or not shape or source.tensors[copy.source].dtype not in FLOAT_DTYPES:
        whole = torch.empty(shape)
        staging.pour(Piece(copy, whole, 0, shape[0] if shape else 1))
        yield whole
        return
    step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], step):
        yield staging.read(copy, start, min(start + step, shape[0]), shape)


def _dead(seen: Mapping[str, Seen]) -> list[str]:
    return [
        f"{told(name)}: all zero, so this expert gives nothing"
        for name, one in seen.items()
        if EXPERT.fullmatch(name) and one.scan.blank
    ]


def _duplicated(
    seen: Mapping[str, Seen], copies: Mapping[str, Copy], staging: Staging, accounts: Accounts
) -> list[str]:
    """Experts, or matrices of theirs, that are others' to the bit."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for name, one in seen.items():
        if EXPERT.fullmatch(name) and one.norm:
            alike[(one.scan.digest, accounts.shapes[name])].append(name)
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for names in alike.values():
        first = names[0]
        for other in names[1:]:
            if _equal(staging, copies[first], copies[other], accounts):
                expert, _, part = told(other).rpartition(", ")
                whose, _, same = told(first).rpartition(", ")
                pairs[expert, whose].append(part if part == same else f"{part} is {same}")
    problems = []
    for (expert, whose), parts in pairs.items():
        every = [n for n in seen if told(n).rpartition(", ")[0] == expert and EXPERT.fullmatch(n)]
        what = "is a copy" if len(parts) == len(every) else f"({', '.join(parts)}) is a copy"
        problems.append(f"{expert} {what} of {whose}: duplicated")
    return problems


def _equal(staging: Staging, one: Copy, other: Copy, accounts: Accounts) -> bool:
    a, b = (
        torch.cat([p.clone() for p in _pieces(staging, accounts.source, copy, accounts.shapes[copy.target])])
        for copy in (one, other)
    )
    return bool(torch.equal(a, b))


def _far(seen: Mapping[str, Seen], shapes: Mapping[str, Shape]) -> list[str]:
    """Matrices whose norm is far from the median of their kind: experts' of one layer, others' of all layers."""
    kinds: dict[tuple[str, bool], dict[str, float]] = defaultdict(dict)
    for name, one in seen.items():
        if len(shapes[name]) > 1:
            found = EXPERT.fullmatch(name)
            kinds[f"{found[1]} {found[3]}" if found else numberless(name), bool(found)][name] = one.norm
    return [
        f"{told(name)}: its norm is {ratio:.1g} times the median of its kind"
        for (_, experts), sizes in kinds.items()
        for name, ratio in outliers(sizes, experts)
    ]
