"""The report's pictures: where two models part, as inline SVG made of plain data."""

from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite, log10

from moesaic.adapt.proof.results import OPS, SPELT, Comparison, Stage, Verification

CELL, ROW = 18, 20
MOST_WIDE = 980  # of a picture
LEVELS = ((0.1, "c0"), (1.0, "c1"), (10.0, "c2"), (1000.0, "c3"))  # difference over tolerance -> colour


def all_of(v: Verification) -> Iterator[tuple[str, str]]:
    """Title and body of each picture that there is data for."""
    by_number = {stage.number: stage for stage in v.stages}
    if by_number.get(3) is not None and by_number[3].comparisons:
        yield "Layer by layer", _figure(_layers(by_number[3]), _LAYERS)
        agreement = _agreement(by_number[3])
        if agreement:
            yield (
                "Router agreement",
                _figure(agreement, "tokens that go to the same experts in both models, by layer"),
            )
    if by_number.get(1) is not None and by_number[1].comparisons:
        caption = "each expert by itself, router off: a row a layer, a column an expert"
        yield "Expert by expert", _figure(_experts(by_number[1]), f"{caption}; {_SCALE}")
    if v.pictures.get("positions"):
        yield "Logits, position by position", _figure(_positions(v), _POSITIONS)
    if v.pictures.get("tokens"):
        yield "The likeliest tokens where logits differ most", _tokens(v)


_SCALE = "faint within a tenth of the tolerance, green within it, yellow to red beyond"
_LAYERS = (
    "each layer is given what the reference's layer was given, so a difference is this layer's own; a row a part of "
    f"the layer, a column a layer; {_SCALE}"
)
_POSITIONS = (
    "a line a prompt: the largest difference of a logit at each position, over the largest logit, on a logarithmic "
    "scale; the dashed line is the tolerance"
)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(width: float, height: float, body: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{"".join(body)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _cell(x: float, y: float, width: float, found: Comparison | None) -> str:
    if found is None:
        return _box(x, y, width, "empty", "")
    return _box(x, y, width, _colour(found), f"{found.place}: {found.difference:.2g} (tolerance {found.tolerance:.0e})")


def _box(x: float, y: float, width: float, colour: str, title: str) -> str:
    tip = f"<title>{escape(title)}</title>" if title else ""
    gap = 1 if width > 4 else 0
    size = f'width="{width - gap:.2f}" height="{ROW - 2}"'
    return f'<rect x="{x:.2f}" y="{y:.1f}" {size} rx="2" style="fill:var(--{colour})">{tip}</rect>'


def _colour(c: Comparison) -> str:
    if not isfinite(c.difference):
        return "c4"
    over = c.difference / c.tolerance if c.tolerance else (0.0 if c.difference == 0 else 1e9)
    return next((colour for bound, colour in LEVELS if over <= bound), "c4")


def _grid(rows: Sequence[tuple[str, Sequence[Comparison | None]]], columns: Sequence[str], left: float = 140) -> str:
    """Named rows of cells under numbered columns."""
    count = max(1, len(columns))
    width = min(CELL * 2, max(2.0, (MOST_WIDE - left) / count))
    step = max(1, -(-count // max(1, int((MOST_WIDE - left) / max(26.0, width)))))
    body = [_text(left + i * width + width / 2, 12, columns[i], "middle") for i in range(0, count, step)]
    for r, (name, cells) in enumerate(rows):
        y = 18 + r * ROW
        body.append(_text(0, y + 13, name))
        body += [_cell(left + i * width, y, width, cell) for i, cell in enumerate(cells)]
    return _svg(left + count * width + 4, 22 + len(rows) * ROW, body)


def _layers(stage: Stage) -> str:
    found = {(c.op, c.layer): c for c in stage.comparisons}
    layers = sorted({c.layer for c in stage.comparisons if c.layer is not None})
    ops = [op for op in OPS if any(o == op for o, _ in found)]
    ends = [c for c in stage.comparisons if c.layer is None]
    rows = [(SPELT.get(op, op), [found.get((op, layer)) for layer in layers]) for op in ops]
    rows += [(c.op, [c]) for c in ends]
    return _grid(rows, [str(layer) for layer in layers])


def _experts(stage: Stage) -> str:
    found = {(c.layer, c.expert): c for c in stage.comparisons}
    layers = sorted({c.layer for c in stage.comparisons if c.layer is not None})
    experts = range(max((c.expert for c in stage.comparisons if c.expert is not None), default=0) + 1)
    rows = [(f"layer {layer}", [found.get((layer, e)) for e in experts]) for layer in layers]
    return _grid(rows, [str(e) for e in experts], left=80)


def _agreement(stage: Stage) -> str:
    """A bar a layer."""
    found = [c for c in stage.comparisons if c.op == "chosen experts"]
    if not found:
        return ""
    left, height = 80, 90
    width = min(36.0, (MOST_WIDE - left) / len(found))
    body = [_text(left - 8, 14, "100 %", "end"), _text(left - 8, 8 + height, "0 %", "end")]
    for i, c in enumerate(found):
        share = 1.0 - c.difference
        x, high = left + i * width, max(1.0, height * share)
        colour = "c1" if c.agrees else "c4"
        title = f"layer {c.layer}: {share:.1%} of {c.tokens} tokens"
        box = f'x="{x:.1f}" y="{8 + height - high:.1f}" width="{max(1.0, width - 2):.1f}" height="{high:.1f}"'
        body.append(f'<rect {box} rx="2" style="fill:var(--{colour})"><title>{title}</title></rect>')
        if width >= 18 or i % 8 == 0:
            body.append(_text(x + width / 2 - 1, height + 22, str(c.layer), "middle"))
    return _svg(left + len(found) * width + 4, height + 28, body)


def _positions(v: Verification) -> str:
    """Lines on a logarithmic scale."""
    lines: Sequence[Sequence[float]] = v.pictures["positions"]
    tolerance = next((c.tolerance for c in v.stages[-1].comparisons if c.op == "logits"), 1e-4)
    low, high, left, height = -8.0, 1.0, 80, 200
    longest = max(map(len, lines))
    wide = min(MOST_WIDE - left - 10, max(300, longest * 16))

    def x(i: int) -> float:
        return left + (i + 0.5) * wide / longest

    def y(value: float) -> float:
        power = high if not isfinite(value) else log10(max(value, 10**low))
        return 8 + (high - min(max(power, low), high)) / (high - low) * height

    body = []
    for power in range(int(low), int(high) + 1, 2):
        at = y(10.0**power)
        body.append(f'<line x1="{left}" x2="{left + wide}" y1="{at:.1f}" y2="{at:.1f}" style="stroke:var(--line)"/>')
        body.append(_text(left - 8, at + 4, f"1e{power}", "end"))
    at = y(tolerance)
    style = "stroke:var(--soft);stroke-dasharray:5 4"
    body.append(f'<line x1="{left}" x2="{left + wide}" y1="{at:.1f}" y2="{at:.1f}" style="{style}"/>')
    for n, line in enumerate(lines):
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(line))
        body.append(f'<polyline points="{points}" style="fill:none;stroke:var(--soft);stroke-opacity:.35"/>')
        for i, value in enumerate(line):
            colour = "good" if value <= tolerance else "bad"
            tip = f"<title>prompt {n}, position {i}: {value:.2g}</title>"
            body.append(
                f'<circle cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.6" style="fill:var(--{colour})">{tip}</circle>'
            )
    every = max(1, longest // 16)
    body += [_text(x(i), height + 26, str(i), "middle") for i in range(0, longest, every)]
    return _svg(left + wide + 10, height + 32, body)


def _tokens(v: Verification) -> str:
    """Both models' likeliest tokens, side by side."""
    found = v.pictures["tokens"]
    rows = []
    for (theirs, a), (ours, b) in zip(found["reference"], found["engine"], strict=True):
        kind = "" if theirs == ours else ' class="other"'
        rows.append(f"<tr{kind}><td>{theirs}</td><td>{a:.4f}</td><td>{ours}</td><td>{b:.4f}</td></tr>")
    head = "<tr><th>reference</th><th>logit</th><th>engine</th><th>logit</th></tr>"
    where = f"prompt {found['prompt']}, position {found['position']}: logits differ by {found['difference']:.2g}"
    return f'<p class="soft">{where}; token ids, the likeliest first</p><table>{head}{"".join(rows)}</table>'
