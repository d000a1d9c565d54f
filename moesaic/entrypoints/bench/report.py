"""A benchmark's figures: a table for people, then one JSON line a figure for programs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 140  # columns of a table that no terminal limits


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured quantity.

    Attributes:
        bench: which benchmark.
        case: the model and the work, what cases share first.
        metric: what was measured.
        samples: one measurement a run (or a step); the figure is their median.
        baseline: what it is compared with, in the same unit; the median of `baselines`, where these are given.
        baselines: what each sample is compared with, measured beside it; the figure's ratio is the median of theirs.
    """

    bench: str
    case: str
    metric: str
    unit: str
    samples: Sequence[float]
    baseline: float | None = None
    baselines: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.baselines is not None:
            if len(self.baselines) != len(self.samples):
                raise ValueError(f"{len(self.samples)} samples of {self.metric}, {len(self.baselines)} baselines")
            object.__setattr__(self, "baseline", median(self.baselines))

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def ratio(self) -> float | None:
        """Value over baseline; run by run where both were measured in each, since a machine's pace changes between."""
        if self.baselines is not None and all(self.baselines):
            return median(ours / theirs for ours, theirs in zip(self.samples, self.baselines, strict=True))
        return self.value / self.baseline if self.baseline else None

    def line(self) -> str:
        """The figure as one line of JSON."""
        return json.dumps(
            {
                "bench": self.bench,
                "case": self.case,
                "metric": self.metric,
                "value": _round(self.value),
                "unit": self.unit,
                "baseline": _round(self.baseline),
                "ratio": _round(self.ratio),
                "runs": len(self.samples),
            }
        )


def report(figures: Sequence[Figure], title: str, json_only: bool = False) -> None:
    """Print figures to stdout: the table, unless `json_only`, then the lines."""
    if not json_only:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        Console(width=width).print(_table(figures, title))
    for figure in figures:
        print(figure.line())


def _table(figures: Sequence[Figure], title: str) -> Table:
    words = [figure.case.split() for figure in figures]
    # what all cases begin with is said once, above the table
    common = next((i for i, same in enumerate(zip(*words, strict=False)) if len(set(same)) > 1), len(words[0]))
    cases = [" ".join(part[common:]) for part in words]
    compares = any(figure.baseline is not None for figure in figures)
    table = Table(title=f"{title}\n{' '.join(words[0][:common])}", title_justify="left")
    if any(cases):
        table.add_column("case", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for name in ("median", "min", "max", *(("baseline", "ratio") if compares else ()), "runs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for i, figure in enumerate(figures):
        repeats = i > 0 and cases[i - 1] == cases[i]
        row = [figure.metric, *map(_cell, (figure.value, min(figure.samples), max(figure.samples)))]
        if compares:
            row += [_cell(figure.baseline), "" if figure.ratio is None else f"{figure.ratio:.3f}"]
        row += [str(len(figure.samples)), figure.unit]
        table.add_row(*(["" if repeats else cases[i]] if any(cases) else []), *row)
    return table


def _round(number: float | None) -> float | None:
    """Six significant digits: more would claim a precision that no clock here has."""
    return None if number is None else float(f"{number:.6g}")


def _cell(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:#.4g}"
