"""The tables of docs/performance.md, from a file of `benchmarks.run_all`: `python -m benchmarks.tables FILE`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks.bars import Line, read_lines

EMPTY = ""


class Figures:
    """The lines of a file, asked for by what they are about."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def of(self, bench: str, metric: str) -> dict[str, Line]:
        """case -> line."""
        return {line["case"]: line for line in self._lines if (line["bench"], line["metric"]) == (bench, metric)}

    def value(self, bench: str, case: str, metric: str) -> float | None:
        """One figure; None where it was not measured."""
        line = self.of(bench, metric).get(case)
        return None if line is None else float(line["value"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, and thousands apart; empty for None."""
    if value is None:
        return EMPTY
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if abs(value) >= 10 ** (digits - 1) else text


def share(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.0%}"


def kernels(figures: Figures) -> str:
    """Experts and linear layers: the share of the longer floor at each number of tokens."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for case, line in figures.of("kernels", "share").items():
        match = re.fullmatch(r"threads=\d+ (experts|linear) (.+) T=(\d+)", case)
        assert match is not None, case
        milliseconds = figures.value("kernels", case, "call")
        cell = f"{share(line['value'])} ({number(milliseconds)} ms)"
        found.setdefault((match[1], match[2]), {})[int(match[3])] = cell
    tokens = sorted({t for cells in found.values() for t in cells})
    rows = [[what, kind, *(cells.get(t, EMPTY) for t in tokens)] for (what, kind), cells in found.items()]
    return table(["kernel", "weights", *(f"{t} token{'s' * (t > 1)}" for t in tokens)], rows)


def attention(figures: Figures) -> str:
    """Attention beside the stream (decode) or the product (prefill)."""
    rows = []
    for case, line in figures.of("attention", "share").items():
        rate = figures.value("attention", case, "bandwidth")
        unit = "GB/s" if rate is not None else "GFLOP/s"
        rate = figures.value("attention", case, "rate") if rate is None else rate
        rows.append([re.sub(r" threads=\d+", "", case), f"{number(rate)} {unit}", share(line["value"])])
    return table(["attention", "rate", "of the limit"], rows)


def models(figures: Figures) -> str:
    """Decoding at batch 1, whole models."""
    rows = []
    for case, line in figures.of("latency", "decode_step").items():
        tokens = 1000 / line["value"]
        parts = (figures.value("latency", case, name) for name in ("decode_share", "stream"))
        of_floor, stream = parts
        rows.append(
            [
                case.partition(" batch=")[0],
                f"{number(line['value'])} ms",
                number(tokens),
                share(of_floor),
                number(stream),
            ]
        )
    return table(["model", "decode step", "tokens/s", "of the floor", "stream, GB/s"], rows)


def peers(figures: Figures) -> str:
    """Tokens a second beside every other engine's, in one run."""
    rows = []
    for metric in ("decode_tokens", "prefill_tokens"):
        for case, line in figures.of("peers", metric).items():
            ours, _, peer = case.partition(" vs ")
            if not peer or line["ratio"] is None:
                continue
            what = re.sub(r" threads=\d+| in=\d+ out=\d+", "", ours)
            cells = [number(line["value"]), number(line["baseline"]), f"{line['ratio']:.2f}"]
            rows.append([what, peer, *cells, share(figures.value("peers", ours, "share"))])
    return table(["model, precision, case", "peer", "moesaic", "the peer", "ratio", "of the floor"], rows)


def starts(figures: Figures) -> str:
    """Start to first token, and its memory."""
    rows = []
    for case, line in figures.of("start", "seconds").items():
        parts = [figures.value("start", case, part) for part in ("imports", "weights", "first_token", "seconds_per_gb")]
        peak = figures.of("start", "peak").get(case)
        fresh = figures.value("start", re.sub(r" (first|cached|from disk)$", "", case), "fresh_memory")
        above = EMPTY if peak is None or peak["ratio"] is None else f"{peak['ratio']:.2f}"
        rows.append([case, number(line["value"]), *map(number, parts), number(fresh), above])
    head = [
        "start",
        "seconds",
        "imports",
        "weights",
        "first token",
        "s/GB beyond imports and 1 s",
        "fresh memory, s/GB",
    ]
    return table([*head, "peak over what is held"], rows)


def quality(figures: Figures, metrics: Sequence[str]) -> str:
    """What precisions cost: a row a metric, a column a precision, for each model."""
    found = {metric: figures.of("quality", metric) for metric in metrics}
    cases = list(dict.fromkeys(case for cells in found.values() for case in cells))
    models = list(dict.fromkeys(case.rpartition(" ")[0] for case in cases))
    precisions = list(dict.fromkeys(case.rpartition(" ")[2] for case in cases))
    rows = []
    for model in models:
        for metric, cells in found.items():
            lines = [cells.get(f"{model} {precision}") for precision in precisions]
            if any(lines):
                rows.append([model, metric, *(_cell(line) for line in lines)])
    return table(["model", "", *precisions], rows)


def _cell(line: Line | None) -> str:
    if line is None:
        return EMPTY
    as_share = line["unit"] == "share" or "error" in line["metric"]
    return f"{line['value']:.2%}" if as_share else f"{line['value']:.4f}"


def sections(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """(heading, table), those for which something was measured."""
    figures = Figures(lines)
    logits = ("logits, error of the median token", "logits, error over all tokens")
    forced = f"{logits[1]}, float32's routing"
    scores = ("perplexity all", "additions, chat", "additions, bare", "JSON parses", "JSON has the keys")
    for heading, text in (
        ("Kernels", kernels(figures)),
        ("Attention", attention(figures)),
        ("Whole models, batch 1", models(figures)),
        ("Against other engines", peers(figures)),
        ("Starting", starts(figures)),
        ("What a precision costs", quality(figures, (*scores, *logits, forced, "choices of experts that changed"))),
    ):
        if text.count("\n") > 1:
            yield heading, text


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Print the tables of FILE."""
    lines = list(read_lines(file.read_text().splitlines()))
    click.echo("\n\n".join(f"### {heading}\n\n{text}" for heading, text in sections(lines)))


if __name__ == "__main__":
    main()
