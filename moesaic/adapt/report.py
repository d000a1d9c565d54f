"""What a checkpoint is, how it would be used, what it takes, and what is wrong with it: `moesaic inspect`.

Torch-free: headers are read, nothing else.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moesaic.adapt.compare import Match
from moesaic.adapt.guesses import guess
from moesaic.adapt.holes import holes
from moesaic.adapt.likeness import Likeness, nearest_architectures
from moesaic.adapt.memory import Memory, memory_of
from moesaic.adapt.misfits import Misfit, misfits
from moesaic.adapt.names import listed
from moesaic.adapt.recognise import Identity, counted, dtype_of, identify, read_spec_of
from moesaic.adapt.survey import Problem, Survey, survey
from moesaic.adapt.uses import Part, Use, parts_of, uses_of
from moesaic.core.errors import MoesaicError
from moesaic.core.formats import WeightFormat
from moesaic.models.aliases import number
from moesaic.models.naming import rules_of
from moesaic.models.parameters import parameter_shapes
from moesaic.models.plausible import beyond_any_model
from moesaic.models.registry import Architecture
from moesaic.models.spec import ExpertAttentionSpec, ExpertPagedAttentionSpec, ModelSpec
from moesaic.weights.layouts.packed import PACKED
from moesaic.weights.plan import Accounting, account
from moesaic.weights.tensors import FLOATS


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
    nearest: tuple[Likeness, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, and everything fits as far as that is known."""
        return not (self.misfits or self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}


def inspect(path: str | os.PathLike[str], arch: str | None = None) -> Report:
    """Look at the checkpoint in folder `path`, or of the model that has this id, at headers alone.

    Args:
        arch: file with the architecture, whatever the config names.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: there is no such model, here or at the Hugging Face hub; `arch` describes no architecture.
    """
    return report_on(survey(os.fspath(path)), arch)


def report_on(found: Survey, arch: str | None = None) -> Report:
    """The report on a checkpoint that was surveyed."""
    identity, architecture = identify(found.config, arch)
    spec, wrong = read_spec_of(found, architecture, arch)
    wrong = wrong or beyond_any_model(found.config)
    problems = list(found.problems)
    if wrong and not any(wrong.endswith(problem.what.partition(": ")[2] or wrong) for problem in problems):
        problems.append(Problem("config.json", wrong))
    accounts = None
    if spec is not None and architecture is not None and found.tensors:
        accounts = _accounts(architecture, spec, found)
    if accounts is not None and spec is not None:
        wrongs = misfits(accounts, spec, found.weights, found.config or {})
    else:
        experts_stated = None if beyond_any_model(found.config) else number(found.config, "num_experts")
        wrongs = holes(found.weight_groups, experts_stated)
    near: tuple[Likeness, ...] = ()
    guesses: Sequence[Match] = ()
    may_differ = found.tensors and not beyond_any_model(found.config)
    if may_differ and (identity.served not in ("native", "transformers") or wrong or _hardly_fits(found, accounts)):
        near = tuple(nearest_architectures(found))
        guesses = guess(found, near[0] if near else None) if spec is None else ()
    uses = uses_of(found, accounts, guesses)
    total, active, experts = counted(found.weight_groups, number(found.config, "top_k"))
    layers = len({la for group in found.weight_groups for la in group.layers}) or number(
        found.config, "num_hidden_layers"
    )
    if spec is not None:
        total, active, layers = spec.num_parameters, spec.num_active_parameters, len(spec.layers)
    facts = _of_experts(spec) if spec is not None else (experts or None, number(found.config, "top_k"))
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
        parts_of(found, uses),
        _memory(found, spec, accounts),
        uses,
        tuple(wrongs),
        tuple(problems),
        tuple(_remarks(found, accounts is not None)),
        near,
    )


def accounts_of(found: Survey, arch: str | None = None) -> Accounting | None:
    """Which tensor fills which parameter; None where no spec says what there is to fill."""
    _, architecture = identify(found.config, arch)
    spec, _ = read_spec_of(found, architecture, arch)
    return None if spec is None or architecture is None else _accounts(architecture, spec, found)


def _hardly_fits(found: Survey, accounts: Accounting | None) -> bool:
    """Whether the config seems to name another architecture than that of the tensors."""
    return accounts is not None and 2 * len(accounts.superfluous) > len(found.weights)


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


def _dtypes(found: Survey) -> dict[str, int]:
    nbytes: Counter[str] = Counter()
    for info in found.tensors.values():
        nbytes[info.dtype] += info.nbytes
    return dict(nbytes.most_common())


def _memory(found: Survey, spec: ModelSpec | None, accounts: Accounting | None) -> Memory | None:
    return (
        None
        if spec is None
        else memory_of(spec, dtype_of(found), stored_formats(found, accounts), found.naming == PACKED)
    )


def stored_formats(found: Survey, accounts: Accounting | None) -> dict[str, WeightFormat]:
    """Parameters that the checkpoint holds as codes, and their formats; `accounts` as of `accounts_of`."""
    if found.naming == PACKED:
        return dict(found.formats)
    if not found.formats or accounts is None:
        return {}
    return {c.target: found.formats[c.source] for c in accounts.plan.copies if c.source in found.formats}


def _remarks(found: Survey, known: bool) -> list[str]:
    """What is unusual; where it is `known` what each tensor should be, only what is no misfit."""
    remarks = []
    for group in found.weight_groups:
        if len(group.dtypes) > 1:
            usual = max(group.dtypes, key=lambda dtype: group.dtypes[dtype])
            odd = [name for name in group.names.values() if found.weights[name].dtype != usual]
            odd = [name for name in odd if not known or found.weights[name].dtype in FLOATS]
            if not odd:
                continue
            kinds = sorted({found.weights[name].dtype for name in odd})
            remarks.append(
                f"{listed(odd, 3)} {'are' if len(odd) > 1 else 'is'} {listed(kinds)}, others of {group.pattern} {usual}"
            )
        if len(group.shapes) > 1 and not known:
            remarks.append(f"{group.pattern} comes in {len(group.shapes)} shapes: {listed(map(list, group.shapes), 4)}")
    return remarks
