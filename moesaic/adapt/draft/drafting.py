"""A draft: the file that describes a checkpoint's architecture, what was guessed in it, and whether it fits."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from moesaic.adapt.draft.code import comment, docstring, literal
from moesaic.adapt.draft.described import describe
from moesaic.adapt.draft.fields import read_fields, reconcile
from moesaic.adapt.draft.harmless import require_harmless
from moesaic.adapt.draft.peers import peers
from moesaic.adapt.draft.questions import Question, ask
from moesaic.adapt.draft.spec_keys import Writer
from moesaic.adapt.draft.structure import Structure, read_structure
from moesaic.adapt.draft.write_rules import write_rules
from moesaic.adapt.draft.write_spec import write_spec
from moesaic.adapt.likeness import Likeness, nearest_architectures
from moesaic.adapt.survey import Survey, survey
from moesaic.core.errors import CheckpointError, ConfigError, MoesaicError
from moesaic.models.parameters import parameter_shapes
from moesaic.models.plausible import COUNTED, beyond_any_model, too_large
from moesaic.weights.plan import plan_load

SAME = 1e-3  # relative difference up to which logits count as reproduced
MODULES = {
    "common": "moesaic.models.common", "spec": "moesaic.models.spec", "errors": "moesaic.core.errors",
    "rules": "moesaic.weights.rules", "dataclasses": "dataclasses",
}  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """What was drafted.

    Attributes:
        path: the checkpoint's folder.
        architecture: its name, as the config has it.
        source: the file, as Python.
        questions: what neither names nor shapes tell, and what was taken for it.
        open: what has to be looked at before the result is right, one line each; [] where nothing was open.
        by_hand: parts that cannot be drafted.
        survey: what was found in the folder.
        misfit: why the checkpoint does not fill the drafted model; "" where it does, every tensor in its place.
        difference: of its logits from a reference's, relative to the largest; None where none was given.
    """

    path: str
    architecture: str
    source: str = field(repr=False)
    questions: tuple[Question, ...]
    open: tuple[str, ...]
    by_hand: tuple[str, ...]
    misfit: str
    structure: Structure = field(repr=False)
    survey: Survey = field(repr=False, compare=False)
    difference: float | None = None

    @cached_property
    def nearest(self) -> list[Likeness]:
        """The known architectures that are built alike, best first, as `inspect` ranks them."""
        return nearest_architectures(self.survey)

    @property
    def ok(self) -> bool:
        """It loads, and reproduces the reference if there was one."""
        return not self.misfit and (self.difference is None or self.difference <= SAME)


class Drafter:
    """Everything known of one checkpoint, from which a draft is written for any choice of answers."""

    def __init__(self, found: Survey) -> None:
        """Raises CheckpointError, ConfigError: there is nothing to draft from."""
        if found.config is None:
            raise ConfigError("; ".join(str(p) for p in found.problems if "config.json" in str(p)) or "no config.json")
        if not found.weights:
            raise CheckpointError("; ".join(map(str, found.problems)) or f"{found.path} holds no weights")
        if found.naming != "hf":
            raise CheckpointError(
                f"{found.path}: its tensors have {found.naming} names, which are mapped for all architectures alike; "
                "draft from a checkpoint with names of its own"
            )
        if beyond := beyond_any_model(found.config):
            raise ConfigError(f"{found.where}: {beyond}")
        self.survey, self.config = found, found.config
        self.fields = read_fields(self.config)
        self.structure = read_structure(found.weight_groups, self.fields.values)
        if beyond := too_large(self.structure.num_layers, self.structure.num_experts or 1, COUNTED):
            raise CheckpointError(f"{found.path}: {beyond}")
        self.told = reconcile(self.fields, self.structure)
        self._tell_norms_apart()
        strange = {path[0]: value for path, value in self.fields.unknown.items() if len(path) == 1}
        self.near = peers(self.structure, self.fields.values, {**self.fields.plain, **strange})
        self.questions = {q.name: q for q in ask(self.structure, self.fields, self.near)}

    def _tell_norms_apart(self) -> None:
        """A norm of queries is of each head, or of all together: where there are several heads, its size tells."""
        s, heads = self.structure, self.fields.values.get("num_attention_heads")
        if s.qk_norm and s.qk_norm_size == s.q_size and heads != 1:
            s.qk_norm = "full"

    @property
    def architecture(self) -> str:
        """As the config names it."""
        names = self.config.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return str(self.config.get("model_type") or os.path.basename(os.path.abspath(self.survey.path)))

    def write(self, questions: Mapping[str, Question] | None = None) -> tuple[str, list[str]]:
        """The file as Python, and what is open."""
        questions = self.questions if questions is None else questions
        s = self.structure
        fields = read_fields(self.config)
        told = reconcile(fields, s)
        best = self.near[0] if self.near and not self.near[0].differs else None
        understood = dict.fromkeys(best.asked, best.name) if best is not None else {}
        writer = Writer(s, fields, told, questions, understood)
        lines = write_spec(writer)
        used_rules: set[str] = set()
        choices = {name: q.choice for name, q in questions.items()}
        rules = write_rules(s, {**choices, "head's size": writer.head_size()}, used_rules)
        opened = [*_open_questions(questions), *writer.open, *self._open_tensors()]
        head = [docstring(f"{self.architecture}: drafted from the names, shapes and config of a checkpoint."), ""]
        for line in opened:
            head += comment(f"OPEN: {line}")
        head += [""] if opened else []
        imports = _imported({**writer.used, "rules": used_rules})
        body = ["", f"ARCHITECTURE = {literal(self.architecture)}", "", "", *lines, "", "", *rules, ""]
        source = "\n".join([*head, *_imports(imports), *body])
        require_harmless(source, imports)
        return source, opened

    def _open_tensors(self) -> list[str]:
        s = self.structure
        left = [f"nothing here takes {g.template} {list(g.shape)}: write a rule, or ignore it" for g in s.unmatched]
        hand = [f"{kind} is to be written by hand, as {mark} shows; {self._start(kind)}" for kind, mark in s.by_hand]
        return [*hand, *(f"{what}: {why}" for what, why in s.ambiguous), *left]

    def _start(self, kind: str) -> str:
        close = [n.name for n in self.near if not any(d.startswith("attention") for d in n.differs)]
        return f"start from {close[0]}" if close else "no known architecture reads this config"

    def draft(self, questions: Mapping[str, Question] | None = None, difference: float | None = None) -> Draft:
        """The draft, proven to load or not."""
        questions = self.questions if questions is None else questions
        source, opened = self.write(questions)
        misfit = misfit_of(source, self.survey)
        return Draft(
            self.survey.path,
            self.architecture,
            source,
            tuple(questions.values()),
            tuple(opened),
            tuple(kind for kind, _ in self.structure.by_hand),
            misfit,
            self.structure,
            self.survey,
            difference,
        )


def adapt(path: str, reference: str | None = None, max_runs: int = 200) -> Draft:
    """Draft a spec file for the checkpoint in folder `path`, or of the model that has this id.

    Args:
        reference: safetensors with `input_ids.<n>` int64 `[T]` and `logits.<n>` `[T, V]`: open questions are settled by
            what reproduces them.
        max_runs: the most runs of the model for that.

    Raises:
        CheckpointError, ConfigError: there is nothing to draft from, or the reference cannot be read.
    """
    drafter = Drafter(survey(path))
    if reference is None:
        return drafter.draft()
    from moesaic.adapt.draft.settle import settle

    return settle(drafter, reference, max_runs)


def misfit_of(source: str, found: Survey) -> str:
    """Why a checkpoint does not fill the model that a drafted file describes; "" where it does."""
    try:
        architecture, spec = describe(source, found.config or {}, found.where)
        tensors = {name: info.shape for name, info in found.weights.items()}
        plan_load(parameter_shapes(spec), architecture.rules(spec), tensors, found.path)
    except MoesaicError as e:
        return str(e)
    except ArithmeticError as e:  # a factor of 0
        return f"{found.where}: the config's numbers cannot be computed with ({e})"
    return ""


def _open_questions(questions: Mapping[str, Question]) -> list[str]:
    return [
        f"{q.name}: taken is {q.choice!r} ({q.evidence}); it could be {', '.join(map(repr, q.others)) or 'another'}"
        for q in questions.values()
        if q.open
    ]


def _imported(used: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Module -> the names that are imported from it."""
    found = {MODULES[key]: sorted(names, key=_isorted) for key, names in used.items() if names}
    return dict(sorted({**found, "moesaic.models.config_reader": ["ConfigReader"]}.items()))


def _imports(imported: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for module, names in imported.items():
        line = f"from {module} import {', '.join(names)}"
        lines += [line] if len(line) <= 120 else [f"from {module} import (", *(f"    {n}," for n in names), ")"]
        lines += [""] if module == MODULES["dataclasses"] else []
    return lines


def _isorted(name: str) -> tuple[bool, str]:
    """Classes first, as ruff sorts imports."""
    return (not name[0].isupper(), name.lower())
