"""What a proof found, as plain data. Torch-free."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]
NAMES = (
    "accounting and weights",
    "one expert, router off",
    "all experts, fixed routes",
    "dynamic routing, layer by layer",
    "end to end",
)


OPS = ("attention", "router logits", "chosen experts", "weights", "feed-forward", "layer")  # in order of computation
SPELT = {"layer": "output", "experts": "its experts together"}  # operations, behind their layer


@dataclass(frozen=True)
class Comparison:
    """How far what the engine computed is from its reference.

    Attributes:
        op: what was compared: "expert", "experts", "attention", "router logits", "chosen experts", "weights",
            "feed-forward", "layer", "embedding", "head", "logits", "greedy token".
        difference: the largest one, as a share of the largest number of the reference; of choices, the share of tokens
            that differ.
        tolerance: that it was held against.
        counts: whether it decides; else it only helps to say where.
        wrong, tokens: how many tokens differ, of how many; 0 of 0 where that says nothing.
    """

    op: str
    layer: int | None
    difference: float
    tolerance: float
    expert: int | None = None
    counts: bool = True
    wrong: int = 0
    tokens: int = 0

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance  # NaN agrees with nothing

    @property
    def place(self) -> str:
        """`layer 3, expert 7`; `layer 3, router logits`."""
        parts = [f"layer {self.layer}"] if self.layer is not None else []
        parts += [f"expert {self.expert}"] if self.expert is not None else [SPELT.get(self.op, self.op)]
        return ", ".join(parts)


@dataclass(frozen=True)
class Stage:
    """One stage of the proof.

    Attributes:
        reference: what it was compared with, and what that shares with the engine.
        summary: one line for people.
        problems: what is wrong, each in a line; the first differing place first.
        comparisons: all that were made.
    """

    number: int
    status: Status
    reference: str
    summary: str
    problems: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return NAMES[self.number]

    @property
    def worst(self) -> Comparison | None:
        """The comparison that counts with the largest difference for its tolerance."""
        counting = [c for c in self.comparisons if c.counts]
        return max(counting, key=lambda c: _ratio(c), default=None)


def _ratio(c: Comparison) -> float:
    ratio = c.difference / c.tolerance if c.tolerance else c.difference
    return float("inf") if ratio != ratio else ratio


@dataclass(frozen=True)
class Cause:
    """A hypothesis that was tried: with it, the difference falls from `before` to `after`.

    Attributes:
        certain: it falls below the tolerance.
        advice: what to change.
    """

    what: str
    before: float
    after: float
    certain: bool
    advice: str = ""

    def __str__(self) -> str:
        verdict = "this is the cause" if self.certain else "it explains a part"
        return f"with {self.what} the difference falls from {self.before:.2g} to {self.after:.1g}: {verdict}"


@dataclass(frozen=True)
class Verification:
    """The outcome of a proof.

    Attributes:
        stages: those that were reached, in order.
        causes: hypotheses that made the difference smaller, the best first.
        evidence: what can be said of the difference before any hypothesis, in lines.
        tried: hypotheses that were tried.
        notes: what the reader should know: coverage of the prompts, references that could not be had, ...
        limits: what is not proven by it, in few words: layers left out, no independent reference.
        pictures: data of the report's pictures, by name (`report_html`).
    """

    path: str
    architecture: str
    dtype: str
    reference: str
    stages: tuple[Stage, ...]
    causes: tuple[Cause, ...] = ()
    evidence: tuple[str, ...] = ()
    tried: int = 0
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    seconds: float = 0.0
    pictures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def proven(self) -> bool:
        """Every stage was reached, and none failed."""
        return len(self.stages) == len(NAMES) and all(stage.status != "failed" for stage in self.stages)

    @property
    def failed(self) -> Stage | None:
        """The stage at which it stopped."""
        return next((stage for stage in self.stages if stage.status == "failed"), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        values["proven"] = self.proven
        for stage, own in zip(self.stages, values["stages"], strict=True):
            own["name"] = stage.name
            own["comparisons"] = [c for c in own["comparisons"] if stage.status == "failed" or c["counts"]]
        return values
