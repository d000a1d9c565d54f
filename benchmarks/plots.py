"""Plots of a run of all benchmarks: `python -m benchmarks.plots build/bench.jsonl docs/images`. Needs matplotlib.

performance-floor.png: the share of the floor that moesaic reaches, by precision and work. performance-peers.png: how
many times faster it is than each peer. What was not measured is left out; a picture without any bar is not made.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.bars import Line, read_lines

PRECISIONS = ("bfloat16", "w8a16", "w4a16", "w8a8")
COLOURS = ("#3b6ea5", "#e08a3c", "#5f9e6e", "#9b6fb0", "#b5574b", "#7f7f7f")
WORK = re.compile(r"decode batch=(\d+) |prefill (\d+)x(\d+)|batch=(\d+) in=\d+ out=\d+")
Bars = dict[str, dict[str, float]]  # series -> label on the axis -> height


def work_of(case: str) -> str:
    """What a case does, as a label: `batch 8`, `prefill 1x1024`."""
    found = WORK.search(case)
    if found is None:
        return case
    if found[2]:
        return f"prefill {found[2]}x{found[3]}"
    return f"batch {found[1] or found[4]}"


def precision_of(case: str) -> str:
    """What a case's weights are kept in."""
    return next((name for name in PRECISIONS if f" {name} " in f"{case} "), "")


def floor_bars(lines: Iterable[Line]) -> Bars:
    """Precision -> model and work -> share of the floor."""
    bars: Bars = {}
    for line in lines:
        if (line["bench"], line["metric"]) not in (("latency", "decode_share"), ("peers", "share")):
            continue
        model = line["case"].split()[0]
        bars.setdefault(precision_of(line["case"]), {})[f"{model}\n{work_of(line['case'])}"] = line["value"]
    return _ordered(bars)


def peer_bars(lines: Iterable[Line]) -> Bars:
    """Precision and peer -> work -> our speed over the peer's."""
    bars: Bars = {}
    for line in lines:
        case, versus, peer = line["case"].partition(" vs ")
        if line["bench"] == "peers" and versus and line["ratio"] is not None:
            bars.setdefault(f"{precision_of(case)} against {peer}", {})[work_of(case)] = line["ratio"]
    return _ordered(bars)


def _ordered(bars: Bars) -> Bars:
    """Series in the order of PRECISIONS."""
    places = {name: i for i, name in enumerate(PRECISIONS)}
    return dict(sorted(bars.items(), key=lambda item: places.get(item[0].split(" ")[0], len(places))))


def draw(bars: Bars, path: Path, title: str, axis: str, reference: float) -> None:
    """Groups of bars, one colour a series, and a line at `reference`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = list(dict.fromkeys(label for heights in bars.values() for label in heights))
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.3 * len(labels) + 2), 3.8), dpi=150)
    width = 0.8 / len(bars)
    for i, (series, heights) in enumerate(bars.items()):
        places = [labels.index(label) + (i - (len(bars) - 1) / 2) * width for label in heights]
        drawn = axes.bar(places, list(heights.values()), width, label=series, color=COLOURS[i % len(COLOURS)])
        axes.bar_label(drawn, fmt="%.2f", fontsize=6, padding=1)
    axes.axhline(reference, color="#444444", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel(axis)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def plot(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw what there are figures for; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, Bars, dict[str, Any]]] = [
        (
            "performance-floor.png",
            floor_bars(lines),
            {"title": "How near to the machine's limit", "axis": "share of the floor", "reference": 1.0},
        ),
        (
            "performance-peers.png",
            peer_bars(lines),
            {"title": "Against other engines at the same bits", "axis": "times faster", "reference": 1.0},
        ),
    ]
    written = []
    for name, bars, words in pictures:
        if bars:
            draw(bars, folder / name, **words)
            written.append(folder / name)
    return written


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(source: Path, folder: Path) -> None:
    """Draw the figures in SOURCE, JSON lines, into FOLDER."""
    for path in plot(list(read_lines(source.read_text().splitlines())), folder):
        click.echo(path)


if __name__ == "__main__":
    main()
