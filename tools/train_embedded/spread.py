"""The expert spread: how far apart the domains are, and a heat map of it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from torch import Tensor

COLOURS = {"arithmetic": "#1f6fb2", "prose": "#2e8b57", "json": "#c2571a"}
LABELS = {"arithmetic": "arithmetic", "prose": "prose", "json": "JSON"}


def summarise(shares: dict[str, Tensor]) -> dict[str, float]:
    """Total variation distance between each two domains, mean over the layers, and by layer for all pairs."""
    out: dict[str, float] = {}
    by_layer = 0.0
    for a, b in combinations(shares, 2):
        distance = (shares[a] - shares[b]).abs().sum(-1) / 2  # [layers]
        out[f"{a} and {b}"] = distance.mean().item()
        by_layer = by_layer + distance / 3
    for layer, value in enumerate(by_layer.tolist()):
        out[f"layer {layer}, mean of the pairs"] = value
    return out


def order_of(layer: list[list[float]]) -> list[int]:
    """Experts sorted by the domain that uses them most, then by how strongly it does."""

    def key(expert: int) -> tuple[int, float]:
        column = [row[expert] for row in layer]
        first = max(range(len(column)), key=column.__getitem__)
        return first, -column[first] / (sum(column) + 1e-9)

    return sorted(range(len(layer[0])), key=key)


def draw(shares: dict[str, Tensor], path: Path) -> None:
    """One block a layer, one row a domain; experts of a layer sorted by the domain that prefers them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    domains = list(shares)
    layers, experts = shares[domains[0]].shape
    figure, axes = plt.subplots(
        layers, 1, figsize=(10, 1.42 * layers + 1.5), gridspec_kw={"hspace": 0.62}, squeeze=False
    )
    cmap = LinearSegmentedColormap.from_list("share", ["#f7f7f5", "#f3d9a4", "#e2894a", "#a8325a", "#3b1049"])
    top = 0.30
    for layer, axis in enumerate(axes[:, 0]):
        rows = [shares[d][layer].tolist() for d in domains]
        order = order_of(rows)
        image = axis.imshow([[row[e] for e in order] for row in rows], cmap=cmap, vmin=0, vmax=top, aspect="auto")
        for y, row in enumerate(rows):
            for x, expert in enumerate(order):
                share = row[expert]
                if share >= 0.005:
                    colour = "white" if share > 0.55 * top else "#333333"
                    axis.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5, color=colour)
        axis.set_yticks(range(len(domains)), [LABELS[d] for d in domains], fontsize=9.5)
        for label, domain in zip(axis.get_yticklabels(), domains, strict=True):
            label.set_color(COLOURS[domain])
        axis.set_xticks(range(experts), [f"e{e}" for e in order], fontsize=8, color="#666666")
        axis.tick_params(length=0, pad=3)
        axis.set_title(f"layer {layer}", loc="left", fontsize=10, pad=4, color="#222222")
        axis.set_xticks([x + 0.5 for x in range(experts - 1)], minor=True)
        axis.set_yticks([y + 0.5 for y in range(len(domains) - 1)], minor=True)
        axis.grid(which="minor", color="white", linewidth=1.5)
        axis.tick_params(which="minor", length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.subplots_adjust(left=0.10, right=0.90, top=0.885, bottom=0.035)
    bar_axis = figure.add_axes((0.925, 0.3, 0.014, 0.4))
    bar = figure.colorbar(image, cax=bar_axis, extend="max", ticks=[0, 1 / experts, 0.15, top])
    bar.ax.set_yticklabels(["0 %", f"even\n1/{experts}", "15 %", f"{100 * top:.0f} %"], fontsize=8.5)
    bar.outline.set_visible(False)
    figure.text(0.10, 0.965, "Where the tokens of each domain go", fontsize=14, weight="bold", color="#222222")
    figure.text(
        0.10, 0.938, "share of a domain's routed tokens by expert, in percent; in each layer the experts are sorted by"
        " the domain that prefers them", fontsize=9.5, color="#555555",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
