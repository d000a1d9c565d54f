"""Bars held against figures made up for it, and the file of a run of all benchmarks."""

import json
import sys

import pytest

from benchmarks.bars import BARS, Bar, judge, markdown
from benchmarks.plots import floor_bars, peer_bars, plot
from benchmarks.run_all import PRECISIONS, Record, Setting, Unit, run, units, verdicts


def line(bench="peers", case="m c", metric="speed", value=1.0, unit="u", baseline=None, ratio=None):
    return {
        "bench": bench, "case": case, "metric": metric, "value": value, "unit": unit,
        "baseline": baseline, "ratio": ratio, "runs": 5,
    }  # fmt: skip


AGAINST = Bar("g", "n", "peers", r"^m c vs ", "speed", least=1.2, field="ratio", share=0.9)
MOST = Bar("g", "n", "start", "", "peak", most=1.15, field="ratio")


def test_the_best_peer_counts() -> None:
    lines = [line(case="m c vs a-1", ratio=3.0), line(case="m c vs b-2", ratio=1.1), line(case="m d vs b-2", ratio=0.1)]
    verdict = judge(AGAINST, lines)
    assert (verdict.met, verdict.measured) == (False, "1.1 (b-2)")


@pytest.mark.parametrize(("share", "met"), [(0.91, True), (0.89, False)])
def test_the_floor_meets_a_bar_by_itself(share: float, met: bool) -> None:
    lines = [line(case="m c vs a-1", ratio=1.0), line(metric="share", value=share)]
    verdict = judge(AGAINST, lines)
    assert verdict.met is met and verdict.measured == f"1 (a-1), {share:.0%} of the floor"


def test_the_largest_counts_against_an_upper_bound() -> None:
    assert judge(MOST, [line("start", "a", "peak", ratio=1.1), line("start", "b", "peak", ratio=1.2)]).met is False
    assert judge(MOST, [line("start", "a", "peak", ratio=1.1)]).met is True


def test_what_was_not_measured_is_neither() -> None:
    verdict = judge(MOST, [line("start", "a", "peak", ratio=None)])
    assert verdict.met is None
    assert markdown([verdict]).endswith("| n | <= 1.15 |  | not measured |")


def test_a_precision_loses_points_against_float32() -> None:
    lines = [
        line("quality", "moe-model w4a16", "JSON parses", 0.97, "share", baseline=0.995),
        line("quality", "moe-model w8a16", "JSON parses", 0.993, "share", baseline=0.995),
    ]
    found = {v.bar.name: v for v in verdicts(lines) if v.met is not None}
    assert {name: v.met for name, v in found.items()} == {
        "w8a16, JSON parses, points lost": True,
        "w4a16, JSON parses, points lost": False,
    }


def test_every_bar_is_one() -> None:
    for bar in BARS:
        assert (bar.least is None) != (bar.most is None), bar
    assert len({(bar.group, bar.name) for bar in BARS}) == len(BARS)


@pytest.mark.parametrize(
    ("bench", "case", "metric"),
    [
        ("latency", "qwen3-moe-mini bfloat16 batch=1 in=32 out=48", "decode_share"),
        ("peers", "qwen3-moe-mini w4a16 threads=2 decode batch=32 in=16 out=32 vs llama.cpp-0.3", "decode_tokens"),
        ("peers", "qwen3-moe-mini w8a8 threads=2 prefill 8x512 vs llama.cpp-0.3", "prefill_tokens"),
        ("start", "qwen3-moe-mini w4a16 from disk", "seconds_per_gb"),
        ("neighbour", "qwen3-moe-mini w4a16 batch=1 in=32 out=48", "disturbed"),
        ("overhead", "qwen3-moe-mini w4a16 batch=1 greedy", "outside_kernels"),
        ("quality", "random olmoe-1b-7b w8a16", "logits, error over all tokens, float32's routing"),
        ("kernels", "threads=2 experts bf16 T=16", "share"),
        ("kernels", "threads=2 experts w4 in groups of 128 with offsets T=512", "share"),
        ("kernels", "threads=2 experts w8a8 in groups of 128 T=512", "share"),
        ("attention", "decode bf16 threads=2 batch=16 context=2048", "share"),
    ],
)
def test_cases_as_benchmarks_print_them_are_found(bench: str, case: str, metric: str) -> None:
    found = [v for v in verdicts([line(bench, case, metric, value=0.5, ratio=0.5)]) if v.met is not None]
    assert len(found) == 1, found


def test_units_of_the_models_that_are_there(tmp_path) -> None:
    def names() -> list[str]:
        return [unit.key for unit in units(Setting(tmp_path, 5, 2, ["vllm=/p"]))]

    assert names() == ["kernels kernels", "kernels attention", "quality moe-model", "quality random"]
    (tmp_path / "qwen3-moe-mini").mkdir()
    (tmp_path / "qwen3-moe-mini" / "config.json").touch()
    assert "model qwen3-moe-mini w4a16" in names() and [n for n in names() if n.startswith("peers")] == [
        f"peers {precision}" for precision in PRECISIONS
    ]


def test_a_file_goes_on_where_it_stopped(tmp_path, capsys) -> None:
    path = tmp_path / "bench.jsonl"
    printed = json.dumps(line("kernels", "x", "share", 0.5))
    units = [
        Unit("kernels", "a", [sys.executable, "-c", f"print('a table'); print('''{printed}''')"]),
        Unit("model", "b", [sys.executable, "-c", f"print('''{printed}''')"]),
        Unit("model", "c", [sys.executable, "-c", "raise SystemExit('no memory')"]),
    ]
    record = Record(path)
    for unit in units:
        run(unit, record)
    assert "FAILED" in capsys.readouterr().err
    again = Record(path)
    assert again.done == {"kernels a", "model b"} and len(again.lines) == len(record.lines) == 2
    again.forget(["model"])
    assert Record(path).done == again.done == {"kernels a"} and len(Record(path).lines) == 1


def test_plots_of_what_there_is(tmp_path) -> None:
    lines = [
        line("latency", "m w4a16 batch=1 in=32 out=48", "decode_share", 0.9),
        line("peers", "m bfloat16 threads=2 prefill 8x512", "share", 0.8),
        line("peers", "m bfloat16 threads=2 prefill 8x512 vs a-1", "prefill_tokens", 9.0, ratio=1.5),
    ]
    assert floor_bars(lines) == {"bfloat16": {"m\nprefill 8x512": 0.8}, "w4a16": {"m\nbatch 1": 0.9}}
    assert peer_bars(lines) == {"bfloat16 against a-1": {"prefill 8x512": 1.5}}
    assert [path.name for path in plot(lines, tmp_path)] == ["performance-floor.png", "performance-peers.png"]
    assert plot(lines[:0], tmp_path) == []
