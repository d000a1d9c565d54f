"""The decision tree as data: questions with their answers in figures, and what to do at its leaves; and the walk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from moesaic.advice.figures import Figures


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        yes: None where the figure is not known.
        because: the figures behind it, or what is missing.
    """

    yes: bool | None
    because: str


@dataclass(frozen=True)
class Advice:
    """A leaf: what to change, in the imperative; several sentences go from the likeliest help to the last."""

    text: str


@dataclass(frozen=True)
class Question:
    """A node. What is not known is taken as no."""

    text: str
    answer: Callable[[Figures], Answer]
    yes: "Question | Advice | None" = None
    no: "Question | Advice | None" = None


@dataclass(frozen=True)
class Branch:
    """One concern: several questions to begin with, each of which may lead to advice."""

    name: str
    questions: Sequence[Question]


@dataclass(frozen=True)
class Finding:
    """What should change, and the answers that led there."""

    branch: str
    problem: str
    because: Sequence[str]
    advice: str


@dataclass(frozen=True)
class Outcome:
    """What came of a branch.

    Attributes:
        figures: of its first questions: why there are no more findings.
        unknown: what is missing for an answer.
    """

    branch: str
    findings: Sequence[Finding]
    figures: Sequence[str]
    unknown: Sequence[str]


def walk(branch: Branch, figures: Figures) -> Outcome:
    """Ask all of a branch's questions. Where two lead to the same advice, it is one finding."""
    findings: dict[str, Finding] = {}
    known: list[str] = []
    unknown: list[str] = []
    for question in branch.questions:
        first = question.answer(figures)
        (unknown if first.yes is None else known).append(first.because)
        finding = _follow(branch.name, question, figures)
        if finding is not None:
            before = findings.get(finding.advice)
            findings[finding.advice] = finding if before is None else _joined(before, finding)
    return Outcome(branch.name, list(findings.values()), known, list(dict.fromkeys(unknown)))


def _joined(one: Finding, other: Finding) -> Finding:
    reasons = dict.fromkeys((*one.because, other.problem, *other.because))
    return replace(one, because=list(reasons))


def _follow(branch: str, first: Question, figures: Figures) -> Finding | None:
    """From a question down to a leaf, if it has one."""
    node: Question | Advice | None = first
    because: list[str] = []
    while isinstance(node, Question):
        answer = node.answer(figures)
        because.append(answer.because)
        node = node.yes if answer.yes else node.no
    return None if node is None else Finding(branch, because[0], because[1:], node.text)


def nodes(branches: Sequence[Branch]) -> Iterator[Question | Advice]:
    """Every question and every leaf, from the top."""
    for branch in branches:
        for question in branch.questions:
            yield from _below(question)


def _below(node: Question | Advice) -> Iterator[Question | Advice]:
    yield node
    if isinstance(node, Question):
        for child in (node.yes, node.no):
            if child is not None:
                yield from _below(child)
