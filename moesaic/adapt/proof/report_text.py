"""A proof in the terminal."""

from collections.abc import Iterator
from textwrap import wrap

from moesaic.adapt.proof.results import NAMES, Stage, Verification

WIDTH = 98
MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}
STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}


def lines(v: Verification) -> Iterator[tuple[str, str]]:
    """The report, line by line, each with its style."""
    yield f"{v.architecture} in {v.path}", "bold"
    if v.reference:
        yield from _wrapped(f"engine in {v.dtype}, against {v.reference}", "", "dim")
    yield "", ""
    reached = {stage.number: stage for stage in v.stages}
    for number, name in enumerate(NAMES):
        if number in reached:
            yield from _stage(reached[number], v)
        else:
            yield f"  · {number}  {name}: not reached", "dim"
    yield "", ""
    for line in v.evidence:
        yield from _wrapped(line, "  ", "")
    for cause in v.causes:
        yield from _wrapped(str(cause), "  → ", "bold")
        if cause.advice:
            yield from _wrapped(f"change: {cause.advice}", "    ", "")
    failed = v.failed
    if failed is not None and failed.number > 0 and not v.causes:
        yield f"  no likely cause found ({v.tried} hypotheses tried)", "yellow"
    if v.evidence or v.causes:
        yield "", ""
    for note in v.notes:
        yield from _wrapped(f"note: {note}", "", "dim")
    yield verdict(v), "bold green" if v.proven else "bold red"


def verdict(v: Verification) -> str:
    """The last line."""
    if v.failed is not None:
        what = "damaged, or no checkpoint of this architecture" if v.failed.number == 0 else "differs"
        return f"NOT PROVEN: stage {v.failed.number} ({v.failed.name}): {what}. {v.seconds:.1f} s"
    skipped = [str(stage.number) for stage in v.stages if stage.status == "skipped"]
    limits = [*v.limits, *([f"stages {', '.join(skipped)} left out"] if skipped else [])]
    but = f" ({'; '.join(limits)})" if limits else ""
    return f"PROVEN{but}: it computes what its reference computes. {v.seconds:.1f} s"


def _stage(stage: Stage, v: Verification) -> Iterator[tuple[str, str]]:
    style = STYLES[stage.status]
    yield f"  {MARKS[stage.status]} {stage.number}  {stage.name}  ({stage.seconds:.1f} s)", f"bold {style}"
    yield from _wrapped(stage.summary, "       ", "")
    if stage.reference and stage.reference not in (v.reference, "the checkpoint itself") and stage.status != "skipped":
        yield from _wrapped(f"against {stage.reference}", "       ", "dim")
    for problem in stage.problems:
        if problem != stage.summary:
            yield from _wrapped(problem, "       ", style)


def _wrapped(text: str, indent: str, style: str) -> Iterator[tuple[str, str]]:
    for part in text.splitlines():
        for line in wrap(
            part, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
        ) or [""]:
            yield line, style
