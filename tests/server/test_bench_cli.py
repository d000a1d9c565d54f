"""`moesaic bench`, with tiny sizes on a tiny model: what it prints, and how it refuses."""

import json

import pytest
from click.testing import CliRunner, Result

from moesaic.core.errors import ConfigError, MoesaicError, RequestError
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.bench import starting
from moesaic.entrypoints.cli.bench import flags_of
from moesaic.entrypoints.cli.main import cli

KEYS = {"bench", "case", "metric", "value", "unit", "baseline", "ratio", "runs"}
SIZES = {
    "latency": ["--batch-size", "2", "--input-len", "5", "--output-len", "4", "--runs", "2"],
    "throughput": ["--num-prompts", "4", "--input-len", "6", "--output-len", "3", "--runs", "2"],
    "overhead": ["--batch-size", "1", "--batch-size", "3", "--input-len", "4", "--steps", "5"],
}
METRICS = {
    "latency": {
        *("run", "time_to_first_token", "decode_step", "generated_tokens"),
        *("prefill_share", "decode_share", "stream", "gemm_fp32"),
    },
    "throughput": {
        *("requests", "prompt_tokens", "generated_tokens", "total_tokens"),
        *("share", "stream", "gemm_fp32"),
    },
    "overhead": {"step", "forward", "engine", "engine+frontend"},
}


@pytest.fixture
def bench(tiny_model, monkeypatch):
    """A function: arguments of `moesaic bench` in, its result out, on a tiny model without a tokenizer."""
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "WARNING")
    engine = ["--model", tiny_model("qwen3_moe"), "--skip-tokenizer-init", "--kv-cache-memory", "8MiB"]

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, ["bench", *args, *engine, "--threads", "1"])

    return run


@pytest.fixture
def bench_model(monkeypatch):
    """The same on the embedded model, which has a tokenizer."""
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "WARNING")

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, ["bench", *args, "--kv-cache-memory", "8MiB", "--threads", "1"])

    return run


@pytest.mark.parametrize("name", SIZES)
def test_prints_a_table_and_a_line_a_figure(bench, name: str) -> None:
    result = bench(name, *SIZES[name])
    assert result.exit_code == 0, result.output
    table, _, lines = result.stdout.partition('{"bench"')
    assert "median" in table
    figures = [json.loads(line) for line in ('{"bench"' + lines).splitlines()]
    # where the C++ backend computes, its calls are timed too
    assert {figure["metric"] for figure in figures} - {"outside_kernels"} == METRICS[name]
    for figure in figures:
        assert set(figure) == KEYS
        assert figure["bench"] == name and figure["value"] > 0 and figure["runs"] > 0
        assert "/" not in figure["case"], "a folder of this machine is nobody's business"


def test_json_only(bench) -> None:
    result = bench("latency", *SIZES["latency"], "--json-only")
    assert [set(json.loads(line)) for line in result.stdout.splitlines()] == [KEYS] * 8


def test_latency_is_set_against_its_floor(bench) -> None:
    lines = bench("latency", *SIZES["latency"], "--runs", "1", "--json-only").stdout.splitlines()
    figures = {f["metric"]: f for f in map(json.loads, lines)}
    assert figures["decode_step"]["baseline"] > 0 and figures["time_to_first_token"]["baseline"] > 0
    assert figures["decode_share"]["value"] == pytest.approx(1 / figures["decode_step"]["ratio"], rel=1e-4)


def test_overhead_is_a_part_of_the_step(bench) -> None:
    lines = bench("overhead", *SIZES["overhead"], "--json-only").stdout.splitlines()
    figures = {(f["case"], f["metric"]): f for f in map(json.loads, lines)}
    assert len({case for case, _ in figures}) == 4  # two batch sizes, greedy and sampled
    for (case, metric), figure in figures.items():
        assert figure["runs"] == 5
        if metric in ("engine", "engine+frontend", "outside_kernels"):
            assert 0 < figure["ratio"] < 1 and figure["baseline"] == figures[case, "step"]["value"]


def test_more_at_once_than_the_engine_runs_is_refused(bench) -> None:
    result = bench("latency", "--batch-size", "5", "--max-num-seqs", "4")
    assert isinstance(result.exception, ConfigError) and "--max-num-seqs (4)" in str(result.exception)


def test_more_tokens_than_the_model_takes_are_refused(bench) -> None:
    result = bench("latency", "--input-len", "500", "--output-len", "500")
    assert isinstance(result.exception, RequestError) and "max_model_len" in str(result.exception)


def test_serve_starts_a_server_of_its_own(bench_model) -> None:
    result = bench_model(
        "serve", "--num-prompts", "3", "--input-len", "5", "--output-len", "4", "--max-concurrency", "2", "--json-only"
    )
    assert result.exit_code == 0, result.output
    figures = {f["metric"]: f for f in map(json.loads, result.stdout.splitlines())}
    assert figures["failed"]["value"] == 0 and figures["generated_tokens"]["value"] > 0
    assert figures["time_to_first_token_median"]["runs"] == 3
    for name in ("time_to_first_token", "time_per_output_token", "request"):
        assert 0 < figures[f"{name}_median"]["value"] <= figures[f"{name}_p99"]["value"]
    assert "prompts=3" in figures["failed"]["case"] and "concurrency=2" in figures["failed"]["case"]


def test_serve_without_a_server_says_so(bench_model) -> None:
    result = bench_model("serve", "--url", "http://127.0.0.1:9", "--num-prompts", "1")
    assert isinstance(result.exception, MoesaicError) and "/v1/models" in str(result.exception)


def test_start_counts_its_parts(bench, monkeypatch) -> None:
    plain, made = starting.start_once, []

    def start_once(*arguments):  # one process is enough for a test
        made.extend([] if made else [plain(*arguments)])
        return made[0]

    monkeypatch.setattr(starting, "start_once", start_once)
    result = bench("start", "--runs", "1", "--json-only")
    assert result.exit_code == 0, result.output
    figures = {(f["case"], f["metric"]): f["value"] for f in map(json.loads, result.stdout.splitlines())}
    case = next(case for case, _ in figures if case.endswith("cached"))
    parts = ("imports", "weights", "kv", "other", "first_token")
    assert figures[case, "seconds"] == pytest.approx(sum(figures[case, part] for part in parts), rel=1e-3)
    assert figures[case, "peak"] > figures[case, "idle"] > figures[case, "weights_held"] > 0


def test_neighbour_compares_with_the_run_before(bench) -> None:
    result = bench("neighbour", "--output-len", "6", "--runs", "1", "--json-only")
    alone, disturbed = map(json.loads, result.stdout.splitlines())
    assert disturbed["baseline"] == alone["value"] and disturbed["ratio"] > 0


def test_flags_are_given_on_as_they_came() -> None:
    args = EngineArgs(model="m", enable_prefix_caching=False, served_model_name=["a", "b"], threads=2)
    assert flags_of(args) == [
        *("--model", "m", "--served-model-name", "a", "--served-model-name", "b"),
        *("--no-enable-prefix-caching", "--threads", "2"),
    ]
