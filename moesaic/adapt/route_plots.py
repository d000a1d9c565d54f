"""Pictures of recorded routes: where tokens go, by layer and expert, and which experts are chosen together."""

import math
import os
import re

import numpy as np

from moesaic.adapt.png import Canvas, text_height, text_width
from moesaic.experts.profile_file import RouteProfile

MARGIN, GAP = 24, 12
LINE = text_height(2) + 4
MOST_WIDTH = 1200  # of a map's cells
BAR = 160  # width of the colour scale
CAP = 0.998  # share of the pairs whose colours differ


def draw_all(profile: RouteProfile, folder: str) -> list[str]:
    """Draw what there is to draw into `folder`, which is made: `experts.png`, one such of each tag, and `together.png`.

    Returns:
        the files' paths.
    """
    os.makedirs(folder, exist_ok=True)
    pictures = {"experts.png": experts_map(profile)}
    for number, tag in enumerate(profile.tags):
        pictures[f"experts-{number}-{re.sub('[^A-Za-z0-9]+', '-', tag)[:40].strip('-')}.png"] = experts_map(
            profile, tag
        )
    if profile.pairs.any():
        pictures["together.png"] = together_map(profile)
    paths = [os.path.join(folder, name) for name in pictures]
    for path, canvas in zip(paths, pictures.values(), strict=True):
        with open(path, "wb") as file:
            file.write(canvas.png())
    return paths


def experts_map(profile: RouteProfile, tag: str | None = None) -> Canvas:
    """A row a layer, a column an expert: its share of the layer's tokens, in multiples of an even share."""
    counts, _ = profile.of(tag)
    shares = np.full((len(counts), max(profile.num_experts)), np.nan)
    for row, of_layer in enumerate(counts):
        shares[row, : len(of_layer)] = of_layer / max(1, of_layer.sum()) * len(of_layer)
    most = max(2.0, math.ceil(float(np.nanmax(shares))))
    width = max(3, min(28, MOST_WIDTH // shares.shape[1]))
    height = max(8, min(28, 900 // shares.shape[0]))
    title = f"{profile.model}: tokens of each expert" + (f", tag {tag}" if tag is not None else "")
    tokens = profile.tokens if tag is None else profile.tokens_of_tags[profile.tags.index(tag)]
    subtitle = f"{tokens} tokens, 1 = as many as if all had the same"
    left, top = MARGIN + text_width("layer 999 ") + GAP, MARGIN + 2 * LINE + GAP
    canvas = Canvas(
        max(left + shares.shape[1] * width, MARGIN + text_width(title), MARGIN + text_width(subtitle)) + MARGIN,
        top + shares.shape[0] * height + 4 * LINE + MARGIN,
    )
    canvas.text(MARGIN, MARGIN, title)
    canvas.text(MARGIN, MARGIN + LINE, subtitle)
    canvas.framed(left, top, shares / most, width, height)
    _label_rows(canvas, profile.layers, left - GAP, top, height)
    bottom = top + shares.shape[0] * height + 6
    _label_columns(canvas, shares.shape[1], left, bottom, width)
    canvas.text(left, bottom + LINE, "expert")
    _scale(canvas, left, bottom + 2 * LINE + 8, "0", f"{most:g}")
    return canvas


def together_map(profile: RouteProfile) -> Canvas:
    """A square a layer: which share of tokens chose both of two experts."""
    panels = [profile.together(row).astype(float) / max(1, profile.tokens) for row in range(len(profile.layers))]
    for panel in panels:
        np.fill_diagonal(panel, np.nan)
    there = np.concatenate([panel[~np.isnan(panel)] for panel in panels])
    most = float(np.quantile(there[there > 0], CAP))  # a few pairs must not pale all others
    side = max(profile.num_experts)
    cell = max(1, min(16, 240 // side))
    columns = max(1, min(len(panels), MOST_WIDTH // (side * cell + GAP)))
    rows = -(-len(panels) // columns)
    step, top = max(side * cell, text_width("layer 999")) + 2 * GAP, MARGIN + 2 * LINE + GAP
    title = f"{profile.model}: experts that the same token chose"
    subtitle = "share of tokens that went to both"
    width = 2 * MARGIN + max(columns * step, text_width(title), text_width(subtitle), BAR + 300)
    canvas = Canvas(width, top + rows * (step + LINE) + 2 * LINE + MARGIN)
    canvas.text(MARGIN, MARGIN, title)
    canvas.text(MARGIN, MARGIN + LINE, subtitle)
    for i, (layer, panel) in enumerate(zip(profile.layers, panels, strict=True)):
        x, y = MARGIN + i % columns * step, top + i // columns * (step + LINE)
        canvas.text(x, y, f"layer {layer}")
        canvas.framed(x, y + LINE, panel / most, cell, cell)
    _scale(canvas, MARGIN, top + rows * (step + LINE) + GAP, "0 %", f"{most:.2%} and more")
    return canvas


def _label_rows(canvas: Canvas, layers: list[int], right: int, top: int, height: int) -> None:
    every = max(1, -(-text_height(2) // height))
    for row, layer in enumerate(layers):
        if row % every == 0:
            y = top + row * height + (height - text_height(2)) // 2 + 2
            canvas.text(right, y, f"layer {layer}" if row == 0 else str(layer), align="right")


def _label_columns(canvas: Canvas, count: int, left: int, y: int, width: int) -> None:
    room = text_width(str(count)) + 6
    every = next((n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n * width >= room), 256)
    for column in range(0, count, every):
        canvas.text(left + column * width + width // 2, y, str(column), align="centre")


def _scale(canvas: Canvas, x: int, y: int, low: str, high: str) -> None:
    """The colours from little to much, and what they stand for."""
    canvas.text(x, y, low)
    start = x + text_width(low) + 6
    canvas.framed(start, y, np.linspace(0, 1, BAR)[None, :], 1, 16)
    canvas.text(start + BAR + 6, y, high)
