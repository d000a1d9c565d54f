"""The tables of docs/performance.md: every figure of a file comes into its cell."""

import json

from click.testing import CliRunner

from benchmarks.tables import main, number


def line(bench, case, metric, value, unit="", baseline=None, ratio=None):
    return {
        "bench": bench,
        "case": case,
        "metric": metric,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "ratio": ratio,
        "runs": 5,
    }


LINES = [
    line("kernels", "threads=2 experts bf16 T=1", "call", 4.5),
    line("kernels", "threads=2 experts bf16 T=1", "share", 0.97),
    line("kernels", "threads=2 experts bf16 T=16", "call", 31.25),
    line("kernels", "threads=2 experts bf16 T=16", "share", 0.95),
    line("attention", "decode bf16 threads=2 batch=16 context=2048", "bandwidth", 17.5),
    line("attention", "decode bf16 threads=2 batch=16 context=2048", "share", 0.84),
    line("latency", "mini w4a16 batch=1 in=32 out=48", "decode_step", 5.0),
    line("latency", "mini w4a16 batch=1 in=32 out=48", "decode_share", 0.875),
    line("latency", "mini w4a16 batch=1 in=32 out=48", "stream", 20.2),
    line("peers", "mini w4a16 threads=2 decode batch=8 in=16 out=32", "share", 0.63),
    line(
        "peers",
        "mini w4a16 threads=2 decode batch=8 in=16 out=32 vs llama.cpp-0.3",
        "decode_tokens",
        262.5,
        "",
        146,
        1.8,
    ),
    line("start", "mini w4a16 cached", "seconds", 3.99),
    line("start", "mini w4a16 cached", "peak", 920.0, "MB", 828.0, 1.11),
    line("start", "mini w4a16", "fresh_memory", 0.9),
    line("quality", "moe-model float32", "perplexity all", 1.13301),
    line("quality", "moe-model w8a16", "perplexity all", 1.13304),
    line("quality", "moe-model w8a16", "logits, error over all tokens", 0.0263),
]


def rows(tmp_path, lines):
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    result = CliRunner().invoke(main, [str(file)], catch_exceptions=False)
    return [text.strip("| ").split(" | ") for text in result.output.splitlines() if text.startswith("|")], result.output


def test_every_figure_has_its_cell(tmp_path) -> None:
    cells, output = rows(tmp_path, LINES)
    assert ["experts", "bf16", "97% (4.5 ms)", "95% (31.2 ms)"] in cells
    assert ["decode bf16 batch=16 context=2048", "17.5 GB/s", "84%"] in cells
    assert ["mini w4a16", "5 ms", "200", "88%", "20.2"] in cells
    assert ["mini w4a16 decode batch=8", "llama.cpp-0.3", "262", "146", "1.80", "63%"] in cells
    assert ["mini w4a16 cached", "3.99", "", "", "", "", "0.9", "1.11"] in cells
    assert ["moe-model", "perplexity all", "1.1330", "1.1330"] in cells
    assert "2.63%" in output


def test_what_was_not_measured_has_no_table(tmp_path) -> None:
    _, output = rows(tmp_path, LINES[:2])
    assert "### Kernels" in output and "### Against" not in output


def test_numbers() -> None:
    assert [number(v) for v in (0.1234, 12.34, 1234.5, None)] == ["0.123", "12.3", "1,230", ""]
