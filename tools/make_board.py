"""Write docs/operate/grafana.json: the board of moesaic's metrics.

usage: make_board.py [--check]     (--check writes nothing and fails if the file is out of date)
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "docs" / "operate" / "grafana.json"
WIDTH, COLUMNS, HEIGHT = 24, 3, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}
OF = 'instance=~"$instance"'  # in every query


@dataclass(frozen=True)
class Panel:
    """A chart.

    Attributes:
        queries: (legend, PromQL), `OF` written as %s.
        unit: as Grafana calls it.
        top: of the axis, where it has one.
    """

    title: str
    text: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    top: float | None = None


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    """Three percentiles of a histogram of seconds."""
    rate = f"sum by (le) (rate(moesaic_{metric}_seconds_bucket{{%s}}[$__rate_interval]))"
    return tuple((f"p{share * 100:g}", f"histogram_quantile({share}, {rate})") for share in (0.5, 0.95, 0.99))


def rate(metric: str, by: str = "") -> str:
    """Of a counter, a second."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate(moesaic_{metric}{{%s}}[$__rate_interval]))"


def gauge(metric: str, by: str = "", how: str = "sum") -> str:
    """Of a gauge, over all servers or by label."""
    return f"{how} by ({by}) (moesaic_{metric}{{%s}})" if by else f"{how}(moesaic_{metric}{{%s}})"


def mean(metric: str) -> str:
    """Of a histogram."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


LAYER, BY_LAYER = "layer {{layer}} {{part}}", "layer, part"
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Traffic",
        (
            Panel(
                "Tokens",
                "Prompt and generated tokens, and those that went through the model.",
                "short",
                (
                    ("prompt", rate("prompt_tokens_total")),
                    ("generated", rate("generation_tokens_total")),
                    ("computed", rate("computed_tokens_total")),
                ),
            ),
            Panel(
                "Sequences",
                "Running, waiting for a place or for blocks, and preempted in the last minutes.",
                "short",
                (
                    ("running", gauge("num_requests_running")),
                    ("waiting", gauge("num_requests_waiting")),
                    ("preempted a second", rate("preemptions_total")),
                ),
            ),
            Panel(
                "Completions",
                "Ended, by reason.",
                "short",
                (("{{reason}}", rate("requests_finished_total", "reason")),),
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel("First token", "From arrival to the first token.", "s", quantiles("time_to_first_token")),
            Panel("Next token", "Between two tokens of a completion.", "s", quantiles("inter_token_latency")),
            Panel("Whole request", "From arrival to the last token.", "s", quantiles("request_latency")),
            Panel(
                "Where a request's time goes",
                "Means: in the queue, from then to the first token, from that to the last.",
                "s",
                (
                    ("queue", mean("request_queue_time_seconds")),
                    ("prefill", mean("request_prefill_time_seconds")),
                    ("decode", mean("request_decode_time_seconds")),
                ),
            ),
            Panel(
                "Step",
                "Mean time of an engine step, and of the model in it.",
                "s",
                (
                    ("step", f"{rate('step_seconds_total')} / {rate('steps_total')}"),
                    ("model", f"{rate('forward_seconds_total')} / {rate('steps_total')}"),
                ),
            ),
        ),
    ),
    (
        "Experts, by layer",
        (
            Panel(
                "Utilisation",
                "Share of a layer's experts that got a token in the last minute.",
                "percentunit",
                ((LAYER, gauge("moe_expert_utilization", BY_LAYER, "min")),),
                top=1,
            ),
            Panel(
                "Imbalance",
                "Tokens of a layer's busiest expert over the mean, in the last minute.",
                "short",
                ((LAYER, gauge("moe_token_imbalance", BY_LAYER, "max")),),
            ),
            Panel(
                "Routing entropy",
                "H / log N of a layer's tokens over its experts, in the last minute; 1 is even.",
                "short",
                ((LAYER, gauge("moe_routing_entropy", BY_LAYER, "min")),),
                top=1,
            ),
            Panel(
                "Dead experts",
                "Experts of a layer that got no token in the last minute, where others did.",
                "short",
                ((LAYER, gauge("moe_dead_experts", BY_LAYER, "max")),),
            ),
            Panel(
                "Choices of experts",
                "A second, of tokens when they were first computed; one with k experts counts k times.",
                "short",
                ((LAYER, rate("moe_expert_tokens_total", BY_LAYER)),),
            ),
            Panel(
                "Computed again",
                "Tokens a second that had been computed before their sequence was preempted.",
                "short",
                (("tokens", rate("moe_recomputed_tokens_total")),),
            ),
        ),
    ),
    (
        "Experts' work",
        (
            Panel("Choosing experts", "Of a step, over all layers.", "s", quantiles("moe_routing_latency")),
            Panel(
                "Share of a step",
                "Of the steps' time, in choosing experts.",
                "percentunit",
                (("routing", f"{rate('moe_routing_latency_seconds_sum')} / {rate('step_seconds_total')}"),),
            ),
            Panel(
                "Compute efficiency",
                "Rows routed to experts over rows of the blocks that they were computed in, in the last minute.",
                "percentunit",
                (("efficiency", gauge("moe_compute_efficiency", how="min")),),
                top=1,
            ),
        ),
    ),
    (
        "Memory",
        (
            Panel(
                "KV cache",
                "Share of the blocks that sequences hold.",
                "percentunit",
                (("in use", gauge("kv_cache_usage_ratio", how="max")),),
                top=1,
            ),
            Panel(
                "KV blocks",
                "That sequences hold, and all.",
                "short",
                (("used", gauge("kv_blocks_used")), ("all", gauge("kv_blocks"))),
            ),
            Panel(
                "Memory that holds nothing",
                "Share of used KV blocks, and of expert pages.",
                "percentunit",
                (("{{kind}}", gauge("moe_memory_fragmentation", "kind", "max")),),
                top=1,
            ),
            Panel("Expert pages", "Their bytes.", "bytes", (("experts", gauge("moe_expert_bytes")),)),
            Panel(
                "Prefix cache",
                "Share of looked-up prompt tokens that were found.",
                "percentunit",
                (("found", f"{rate('prefix_cache_hits_tokens_total')} / {rate('prefix_cache_queries_tokens_total')}"),),
                top=1,
            ),
            Panel(
                "Recurrent state",
                "Slots that sequences hold, copies that later prompts may start from, and all; 0 for most models.",
                "short",
                (
                    ("used", gauge("state_slots_used")),
                    ("checkpoints", gauge("state_checkpoints")),
                    ("all", gauge("state_slots")),
                ),
            ),
        ),
    ),
)


def board() -> str:
    """The whole file."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, charts in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1)})
        y += 1
        for index, chart in enumerate(charts):
            width = WIDTH // COLUMNS
            panels.append(_chart(chart, _place(index % COLUMNS * width, y + index // COLUMNS * HEIGHT, width, HEIGHT)))
        y += -(-len(charts) // COLUMNS) * HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return json.dumps(_frame(panels), indent=1) + "\n"


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _chart(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    limits = {"min": 0} | ({"max": panel.top} if panel.top is not None else {})
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "legendFormat": legend, "expr": expr.replace("%s", OF)}
            for i, (legend, expr) in enumerate(panel.queries)
        ],
    }


def _frame(panels: list[dict[str, Any]]) -> dict[str, Any]:
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Server",
            "type": "query",
            "datasource": SOURCE,
            "query": "label_values(moesaic_info, instance)",
            "multi": True,
            "includeAll": True,
            "refresh": 2,
        },
    ]
    return {
        "title": "moesaic",
        "uid": "moesaic",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if FILE.exists() and FILE.read_text() == board() else f"{FILE} is out of date: make docs")
    FILE.write_text(board())
