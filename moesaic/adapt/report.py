"""What a checkpoint is, how it would be used, what it takes, and what is wrong with it: `moesaic inspect`.

Torch-free: headers are read, nothing else.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moesaic.adapt.holes import holes
from moesaic.adapt.memory import Memory, memory_of
from moesaic.adapt.misfits import Misfit, misfits
from moesaic.adapt.names import Group, listed, ranges
from moesaic.adapt.parts import PARTS, guessed_part, named_together, part_of
from moesaic.adapt.recognise import Identity, counted, dtype_of, identify, read_spec_of, stated
from moesaic.adapt.survey import Problem, Survey, survey
from moesaic.core.errors import MoesaicError
from moesaic.core.formats import WeightFormat
from moesaic.models.naming import rules_of
from moesaic.models.parameters import parameter_shapes
from moesaic.models.registry import Architecture
from moesaic.models.spec import ExpertAttentionSpec, ExpertPagedAttentionSpec, ModelSpec
from moesaic.weights.plan import Accounting, account
from moesaic.weights.rules import numberless

_OF_CODES = re.compile(r"[._](blocks|scales?|packed|shape|scale_inv|zero_point|qweight|qzeros|g_idx|weight_\w+)$")


@dataclass(frozen=True)
class Use:
    """Tensors of one pattern, and what becomes of them.

    Attributes:
        pattern: their names, `{l}` for the layer, `{e}` for the expert.
        count, shape, dtypes, nbytes: how many, the shape of most, and dtypes as stored (of codes: their weights').
        layers, experts: the numbers in the names, as ranges.
        part: of the model.
        becomes: what they are in it, in words; "" where nobody knows.
        parameters: canonical, `#` for numbers.
        state: "used", "checked" (must equal a parameter), "ignored", "unused" or "unknown".
    """

    pattern: str
    count: int
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    layers: str
    experts: str
    part: str
    becomes: str
    parameters: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class Part:
    """A part of the model: elements and bytes as they are stored."""

    name: str
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Report:
    """What `inspect` found.

    Attributes:
        identity: the architecture and who computes it.
        format: of the files; `files` of them hold `tensors` tensors of `nbytes` bytes.
        quantization: the method that the config states, or "".
        parameters, active: of the model, and of those that one token meets; told from a spec, or "names" alone.
        layers, experts: of the model; experts of a layer, of which `top_k` compute a token. None where not known.
        dtypes: as stored -> bytes.
        memory: to serve; None where no spec says what is computed.
        misfits: what does not fill the model; `problems`: files and config.
        remarks: what is unusual and no obstacle.
        nearest: known architectures that are built alike, where this one is not known.
    """

    path: str
    identity: Identity
    format: str
    files: int
    tensors: int
    nbytes: int
    naming: str
    quantization: str
    parameters: int
    active: int | None
    told_from: str
    layers: int | None
    experts: int | None
    top_k: int | None
    dtypes: Mapping[str, int]
    parts: tuple[Part, ...]
    memory: Memory | None
    uses: tuple[Use, ...]
    misfits: tuple[Misfit, ...]
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, and everything fits as far as that is known."""
        return not (self.misfits or self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}


def inspect(path: str | os.PathLike[str], arch: str | None = None) -> Report:
    """Look at the checkpoint in folder `path`, at headers alone.

    Args:
        arch: file with the architecture, whatever the config names.

    Raises:
        CheckpointError: there is no such folder.
        ConfigError: `arch` describes no architecture.
    """
    return report_on(survey(os.fspath(path)), arch)


def report_on(found: Survey, arch: str | None = None) -> Report:
    """The report on a checkpoint that was surveyed."""
    identity, architecture = identify(found.config, arch)
    spec, wrong = read_spec_of(found, architecture, arch)
    problems = list(found.problems)
    if wrong and not any(wrong.endswith(problem.what.partition(": ")[2] or wrong) for problem in problems):
        problems.append(Problem("config.json", wrong))
    accounts = None
    if spec is not None and architecture is not None and found.tensors:
        accounts = _accounts(architecture, spec, found)
    if accounts is not None and spec is not None:
        wrongs = misfits(accounts, spec, found.weights, found.config or {})
    else:
        wrongs = holes(found.weight_groups, stated(found.config, "experts"))
    uses = _uses(found, accounts)
    total, active, experts = counted(found.weight_groups, stated(found.config, "top_k"))
    layers = len({la for group in found.weight_groups for la in group.layers}) or stated(found.config, "layers")
    if spec is not None:
        total, active, layers = spec.num_parameters, spec.num_active_parameters, len(spec.layers)
    facts = _of_experts(spec) if spec is not None else (experts or None, stated(found.config, "top_k"))
    return Report(
        found.path,
        identity,
        found.kind,
        len(found.files),
        len(found.tensors),
        found.nbytes,
        found.naming,
        found.quantization,
        total,
        active,
        "spec" if spec is not None else "names",
        layers,
        *facts,
        _dtypes(found),
        _parts(found, uses),
        _memory(found, spec, accounts),
        uses,
        tuple(wrongs),
        tuple(problems),
        tuple(_remarks(found)),
    )


def accounts_of(found: Survey, arch: str | None = None) -> Accounting | None:
    """Which tensor fills which parameter; None where no spec says what there is to fill."""
    _, architecture = identify(found.config, arch)
    spec, _ = read_spec_of(found, architecture, arch)
    return None if spec is None or architecture is None else _accounts(architecture, spec, found)


def _accounts(architecture: Architecture, spec: ModelSpec, found: Survey) -> Accounting | None:
    try:
        rules = rules_of(architecture, spec, found.naming)
    except (MoesaicError, KeyError):
        return None
    shapes = {name: info.shape for name, info in found.weights.items()}
    return account(parameter_shapes(spec), rules, shapes)


def _of_experts(spec: ModelSpec) -> tuple[int | None, int | None]:
    """Experts of a layer, and how many of them compute a token: of the layer with most."""
    found = [(moe.num_experts, moe.router.top_k) for layer in spec.layers if (moe := layer.moe) is not None]
    of_attention = ExpertAttentionSpec | ExpertPagedAttentionSpec
    found += [(a.num_experts, a.router.top_k) for la in spec.layers if isinstance(a := la.attention, of_attention)]
    return max(found, default=(None, None))


def _uses(found: Survey, accounts: Accounting | None) -> tuple[Use, ...]:
    """What becomes of each group of names."""
    targets: dict[str, list[str]] = defaultdict(list)
    state: dict[str, str] = {}
    if accounts is not None:
        for copy in accounts.plan.copies:
            targets[copy.source].append(copy.target)
        state.update(dict.fromkeys(accounts.superfluous, "unused"))
        state.update(dict.fromkeys(accounts.ignored, "ignored"))
        for check in accounts.plan.checks:
            targets[check.source].append(check.target)
            state[check.source] = "checked"
    return tuple(_use(group, targets, state, accounts is not None) for group in found.weight_groups)


def _use(group: Group, targets: Mapping[str, list[str]], state: Mapping[str, str], known: bool) -> Use:
    names = list(group.names.values())
    first = next((name for name in names if name in targets), names[0])
    # What lies under one name may differ from layer to layer.
    parameters = tuple(dict.fromkeys(numberless(target) for name in names for target in targets.get(name, ())))
    said = state.get(first, "used" if parameters else "unused" if known else "unknown")
    return Use(
        group.pattern,
        len(group),
        group.shape,
        tuple(sorted(group.dtypes)),
        group.nbytes,
        ranges(group.layers),
        ranges(group.experts),
        part_of(targets[first][0]) if parameters else guessed_part(group.pattern),
        named_together(list(parameters)) if parameters else "",
        parameters,
        said,
    )


def _parts(found: Survey, uses: tuple[Use, ...]) -> tuple[Part, ...]:
    """Elements and stored bytes of each part; codes count where their weight does."""
    part_of_pattern = {use.pattern: use.part for use in uses}
    sizes: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for group in found.weight_groups:
        sizes[part_of_pattern[group.pattern]] += group.numel
    for group in found.groups:
        of = part_of_pattern.get(group.pattern) or part_of_pattern.get(_weight_of(group.pattern))
        nbytes[of or guessed_part(group.pattern)] += group.nbytes
    return tuple(Part(part, sizes[part], nbytes[part]) for part in PARTS if sizes[part] or nbytes[part])


def _weight_of(pattern: str) -> str:
    """The name of the weight that a tensor of codes or scales belongs to."""
    stem = _OF_CODES.sub("", pattern)
    return stem if stem.endswith((".weight", "_proj")) else f"{stem}.weight"


def _dtypes(found: Survey) -> dict[str, int]:
    nbytes: Counter[str] = Counter()
    for info in found.tensors.values():
        nbytes[info.dtype] += info.nbytes
    return dict(nbytes.most_common())


def _memory(found: Survey, spec: ModelSpec | None, accounts: Accounting | None) -> Memory | None:
    return None if spec is None else memory_of(spec, dtype_of(found), stored_formats(found, accounts))


def stored_formats(found: Survey, accounts: Accounting | None) -> dict[str, WeightFormat]:
    """Parameters that the checkpoint holds as codes, and their formats; `accounts` as of `accounts_of`."""
    if not found.formats or accounts is None:
        return {}
    return {c.target: found.formats[c.source] for c in accounts.plan.copies if c.source in found.formats}


def _remarks(found: Survey) -> list[str]:
    """What is unusual."""
    remarks = []
    for group in found.weight_groups:
        if len(group.dtypes) > 1:
            usual = max(group.dtypes, key=lambda dtype: group.dtypes[dtype])
            odd = [name for name in group.names.values() if found.weights[name].dtype != usual]
            kinds = sorted({found.weights[name].dtype for name in odd})
            remarks.append(
                f"{listed(odd, 3)} {'are' if len(odd) > 1 else 'is'} {listed(kinds)}, the other "
                f"{len(group) - len(odd)} of {group.pattern} {usual}"
            )
        if len(group.shapes) > 1:
            remarks.append(f"{group.pattern} comes in {len(group.shapes)} shapes: {listed(map(list, group.shapes), 4)}")
    return remarks
