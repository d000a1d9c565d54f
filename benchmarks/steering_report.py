"""What `benchmarks.steering` measured, for people: tables of a page, and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from moesaic.entrypoints.bench.report import Figure
from moesaic.experts.profile_file import RouteProfile

OWN = "the model's own"
SHARES = (0.25, 0.5, 0.75, 0.875)  # of experts banned


def shares_of(routes: RouteProfile) -> NDArray[np.float64]:
    """`[tags, L, E]`: the share of a tag's routing weight that each expert of a layer carries."""
    weights = routes.weights[1:]
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def markdown(figures: Sequence[Figure]) -> str:
    """A row a case, a column a metric: shares in per cent with the change in points, times with their ratio."""
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    cells = {(figure.case, figure.metric): _cell(figure) for figure in figures}
    lines = ["| routes | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for case in dict.fromkeys(figure.case for figure in figures):
        lines.append(f"| {case} | " + " | ".join(cells[case, metric] for metric in metrics) + " |")
    return "\n".join(lines)


def _cell(figure: Figure) -> str:
    if figure.unit != "share":
        ratio = "" if figure.ratio is None else f" ({figure.ratio:.2f} ×)"
        return f"{figure.value:.2f} {figure.unit}{ratio}"
    change = "" if figure.baseline is None else f" ({100 * (figure.value - figure.baseline):+.1f})"
    return f"{100 * figure.value:.1f} %{change}"


def preferences(routes: RouteProfile) -> str:
    """For each layer and tag the experts that carry most of its weight, with their share."""
    lines = ["| layer | " + " | ".join(routes.tags) + " |", "|---|" + "---|" * len(routes.tags)]
    shares = shares_of(routes)
    for i, layer in enumerate(routes.layers):
        cells = []
        for row in shares[:, i]:
            best = np.argsort(-row, kind="stable")[:4]
            cells.append(", ".join(f"**{expert}** {100 * row[expert]:.0f} %" for expert in best))
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between the marks of `name`."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    head, _, rest = page.read_text().partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise click.ClickException(f"{page} has no marks for {name!r}")
    page.write_text(head + begin + text + end + tail)


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Scores over the share of experts that is banned, by the domain's own weights and by those of all domains; and how
    long a step takes, over one with the model's own routes, where times are among the figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = {(figure.case, figure.metric): 100 * figure.value for figure in figures if figure.unit == "share"}
    times = [figure for figure in figures if figure.unit == "ms"]
    metrics = list(dict.fromkeys(metric for _, metric in values))
    columns = len(metrics) + bool(times)
    chart, panels = pyplot.subplots(1, columns, figsize=(3 * columns, 3.2), dpi=150)
    for panel, metric in zip(panels, metrics, strict=False):
        for whose, style, colour in (("by domain", "-", "#3b6ea5"), ("by all domains", "--", "#e08a3c")):
            heights = [values[OWN, metric], *(values[f"without {100 * share:g}% {whose}", metric] for share in SHARES)]
            places = [0.0, *(100 * share for share in SHARES)]
            panel.plot(places, heights, style, marker="o", color=colour, label=f"banned {whose}", markersize=4)
        panel.axhline(values["top-k 1", metric], color="#7f7f7f", linewidth=0.8, linestyle=":", label="top-k 1")
        panel.set_title(metric, fontsize=9, loc="left")
        panel.set_xlabel("experts banned, %", fontsize=8)
        panel.set_ylim(0, 103)
    panels[0].set_ylabel("score, %", fontsize=8)
    panels[len(metrics) - 1].legend(fontsize=7, frameon=False, loc="lower left")
    if times:
        _draw_times(panels[-1], times)
    for panel in panels:
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    chart.savefig(path)
    pyplot.close(chart)


def _draw_times(panel: Any, times: Sequence[Figure]) -> None:
    """Bars: each case's time over the model's own, by metric."""
    metrics = list(dict.fromkeys(figure.metric for figure in times))
    cases = list(dict.fromkeys(figure.case for figure in times if figure.ratio is not None))
    ratios = {(figure.case, figure.metric): figure.ratio for figure in times}
    for i, (metric, colour) in enumerate(zip(metrics, ("#5f9e6e", "#9b6fb0"), strict=False)):
        places = [place + (i - (len(metrics) - 1) / 2) * 0.38 for place in range(len(cases))]
        panel.barh(places, [ratios[case, metric] for case in cases], 0.36, label=metric, color=colour)
    panel.axvline(1.0, color="#7f7f7f", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(cases)), [case.replace(" by domain", "\nby domain") for case in cases])
    panel.invert_yaxis()
    panel.set_title("time of a step, model's own = 1", fontsize=9, loc="left")
    panel.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))
