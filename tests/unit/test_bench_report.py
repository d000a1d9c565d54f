"""How a benchmark's figures are printed."""

import json

import pytest

from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.workload import random_prompts

KEYS = ["bench", "case", "metric", "value", "unit", "baseline", "ratio", "runs"]


def figure(case: str, samples: list[float], baseline: float | None = None) -> Figure:
    return Figure(bench="b", case=case, metric="decode", unit="tokens/s", samples=samples, baseline=baseline)


def test_a_line_holds_the_median_and_every_key() -> None:
    line = json.loads(figure("m x", [3.0, 1.0, 2.0]).line())
    assert list(line) == KEYS
    assert (line["value"], line["runs"], line["baseline"], line["ratio"]) == (2.0, 3, None, None)


def test_the_ratio_is_value_over_baseline() -> None:
    line = json.loads(figure("m x", [3.0], baseline=2.0).line())
    assert (line["baseline"], line["ratio"]) == (2.0, 1.5)


def test_runs_are_compared_one_by_one() -> None:
    """Where both were measured in each run, the median of ratios is not the ratio of medians."""
    made = Figure(bench="b", case="c", metric="m", unit="u", samples=[1.0, 4.0, 6.0], baselines=[1.0, 8.0, 4.0])
    assert (made.value, made.baseline, made.ratio) == (4.0, 4.0, 1.0)
    with pytest.raises(ValueError, match="2 samples of m, 1 baselines"):
        Figure(bench="b", case="c", metric="m", unit="u", samples=[1.0, 2.0], baselines=[1.0])


def test_the_table_says_what_all_cases_share_once(capsys) -> None:
    report([figure("model float32 batch=1", [1.0]), figure("model float32 batch=8", [5.0, 12345.0], 2.0)], "title")
    out = capsys.readouterr().out
    table, lines = out[: out.index("{")], out[out.index("{") :]
    assert "title" in table and "12,345" in table
    assert table.count("model float32") == 1
    assert [json.loads(line)["case"] for line in lines.splitlines()] == [
        "model float32 batch=1",
        "model float32 batch=8",
    ]


def test_json_only_prints_nothing_else(capsys) -> None:
    report([figure("model", [1.0])], "title", json_only=True)
    assert list(json.loads(capsys.readouterr().out)) == KEYS


def test_prompts_depend_on_the_seed_alone() -> None:
    assert random_prompts([3, 5], 100, 7) == random_prompts([3, 5], 100, 7) != random_prompts([3, 5], 100, 8)
    assert [len(prompt) for prompt in random_prompts([3, 5], 100, 7)] == [3, 5]
