"""Everything that docs/performance.md quotes, in one go: `python -m benchmarks.run_all FOLDER`.

FOLDER holds the checkpoints of benchmarks.make_checkpoint, each under the name of its shape; what peers read lies in
FOLDER/gguf (qwen3-moe-mini-q4_0.gguf and its like) and FOLDER/qwen3-moe-mini-w8a8. Figures go into one file of JSON
lines as they come; what is there already is not measured again, so that an interrupted run goes on where it stopped. At
the end: each bar, measured, met or not.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.bars import BARS, Line, Verdict, judge, markdown, read_lines

MINI = "qwen3-moe-mini"
MODELS = (MINI, "granite-1b-a400m", "olmoe-1b-7b")
# name -> flags of the engine, GGUF file of the same bits
PRECISIONS: dict[str, tuple[list[str], str]] = {
    "bfloat16": (["--dtype", "bfloat16"], "bf16"),
    "w8a16": (["--dtype", "bfloat16", "--quantization", "w8a16"], "q8_0"),
    "w4a16": (["--dtype", "bfloat16", "--quantization", "w4a16"], "q4_0"),
    "w8a8": (["--dtype", "bfloat16", "--quantization", "w8a8"], "q8_0"),
}
SECTIONS = ("kernels", "model", "overhead", "neighbour", "start", "quality", "peers")


@dataclass(frozen=True)
class Unit:
    """What is measured in one process: its name in the file, and its command."""

    section: str
    name: str
    command: list[str]

    @property
    def key(self) -> str:
        return f"{self.section} {self.name}"


@dataclass(frozen=True)
class Setting:
    """What all units share.

    Attributes:
        pythons: PEER=PATH, as benchmarks.peers takes them.
    """

    folder: Path
    runs: int
    threads: int | None
    pythons: Sequence[str]

    def engine(self) -> list[str]:
        return ["--threads", str(self.threads)] if self.threads else []

    def model(self, name: str) -> str:
        return str(self.folder / name)


def units(setting: Setting) -> Iterator[Unit]:
    """All units whose models are there, in the order in which they are measured."""
    bench = [sys.executable, "-m", "moesaic", "bench"]
    runs = ["--runs", str(setting.runs)]
    for kind in ("kernels", "attention"):
        yield Unit("kernels", kind, [*bench, kind, *runs, *setting.engine(), "--json-only"])
    models = [name for name in MODELS if (setting.folder / name / "config.json").exists()]
    for name in models:
        for precision in ("bfloat16", "w8a16", "w4a16"):
            sizes = ["--batch-size", "1", "--output-len", "48", "--max-model-len", "2048", "--skip-tokenizer-init"]
            sizes += ["--kv-cache-memory", "512MiB"]
            yield _engine_unit(setting, "model", [*bench, "latency"], name, precision, [*sizes, *runs])
    if MINI in models:
        for precision in ("bfloat16", "w4a16"):
            sizes = ["--batch-size", "1", "--steps", "100"]
            yield _engine_unit(setting, "overhead", [*bench, "overhead"], MINI, precision, sizes)
        for precision in ("bfloat16", "w4a16"):
            sizes = ["--output-len", "48", *runs]
            yield _engine_unit(setting, "neighbour", [*bench, "neighbour"], MINI, precision, sizes)
        for precision in ("bfloat16", "w8a16", "w4a16"):
            yield _engine_unit(setting, "start", [*bench, "start"], MINI, precision, runs)
    quality = [sys.executable, "-m", "benchmarks.quality", *setting.engine(), "--json-only"]
    yield Unit("quality", "moe-model", quality)
    yield Unit("quality", "random", [*quality, "--random"])
    if MINI in models:
        yield from _peers(setting)


def _engine_unit(
    setting: Setting, section: str, bench: list[str], model: str, precision: str, flags: list[str]
) -> Unit:
    command = [*bench, setting.model(model), *PRECISIONS[precision][0], *flags, *setting.engine(), "--json-only"]
    return Unit(section, f"{model} {precision}", command)


def _peers(setting: Setting) -> Iterator[Unit]:
    decode = ["--batch-size", "1", "--batch-size", "8", "--batch-size", "32", "--output-len", "32"]
    prefill = ["--prefill", "1x1024", "--prefill", "8x512"]
    parts = {
        "bfloat16": [*decode, *prefill],
        "w8a16": [*decode, "--no-prefill"],
        "w4a16": [*decode, *prefill],
        "w8a8": ["--no-decode", *prefill],
    }
    for precision, cases in parts.items():
        flags, bits = PRECISIONS[precision]
        gguf = setting.folder / "gguf" / f"{MINI}-{bits}.gguf"
        command = [sys.executable, "-m", "benchmarks.peers", "--model", setting.model(MINI), *flags]
        w8a8 = setting.folder / f"{MINI}-w8a8"
        command += ["--gguf", str(gguf)] if gguf.exists() else []
        command += ["--w8a8", str(w8a8)] if w8a8.exists() else []
        command += ["--peer", "llama_cpp", "--peer", "vllm", *cases, "--runs", str(setting.runs), *setting.engine()]
        for python in setting.pythons:
            command += ["--python", python]
        yield Unit("peers", precision, [*command, "--json-only"])


class Record:
    """The file of JSON lines: the figures, each unit's after a line that says how it was measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read(path.read_text().splitlines() if path.exists() else [])

    def _read(self, text: list[str]) -> None:
        self.lines = list(read_lines(text))
        self.done = {json.loads(line)["unit"] for line in text if line.startswith('{"unit"')}

    def forget(self, sections: Sequence[str]) -> None:
        """Drop sections, so that they are measured again."""
        kept, keep = [], True
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            if line.startswith('{"unit"'):
                keep = json.loads(line)["unit"].split()[0] not in sections
            if keep:
                kept.append(line)
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self._read(kept)

    def add(self, unit: Unit, seconds: float, output: str) -> None:
        """Keep a unit's figures, at once."""
        head = {
            "unit": unit.key,
            "seconds": round(seconds, 1),
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "machine": platform.machine(),
        }
        figures = [line for line in output.splitlines() if line.startswith('{"bench"')]
        with self._path.open("a") as file:
            file.writelines(f"{line}\n" for line in [json.dumps(head), *figures])
        self.done.add(unit.key)
        self.lines += read_lines(figures)


def run(unit: Unit, record: Record) -> None:
    """Measure a unit and keep its figures; one that fails is left out, with what it said last."""
    start = time.monotonic()
    done = subprocess.run(unit.command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    remarks = [line for line in done.stderr.splitlines() if "skipped" in line or "dropped" in line]
    for remark in remarks:
        click.echo(f"  {remark}", err=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        click.echo(f"  FAILED after {seconds:.0f} s with status {done.returncode}: {last}", err=True)
        return
    record.add(unit, seconds, done.stdout)


def with_losses(lines: Sequence[Line]) -> list[Line]:
    """The lines, and for each score of a precision how much of float32's it lost."""
    losses = [
        {**line, "metric": f"lost: {line['metric']}", "value": line["baseline"] - line["value"]}
        for line in lines
        if line["bench"] == "quality" and line["unit"] == "share" and line["baseline"] is not None
    ]
    return [*lines, *losses]


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Every bar against the figures."""
    extended = with_losses(lines)
    return [judge(bar, extended) for bar in BARS]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench.jsonl"), show_default=True, help="the file"
)
@click.option("--section", "sections", type=click.Choice(SECTIONS), multiple=True, help="only these; repeatable")
@click.option("--again", is_flag=True, help="measure these sections (all, if none is named) again")
@click.option("--only-judge", is_flag=True, help="measure nothing: print the bars against what the file holds")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="runs that count, of each figure"
)
@click.option("--threads", type=int, help="the machine's physical cores by default")
@click.option("--python", "pythons", multiple=True, metavar="PEER=PATH", help="a peer's own Python")
def main(
    folder: Path,
    out: Path,
    sections: tuple[str, ...],
    again: bool,
    only_judge: bool,
    runs: int,
    threads: int | None,
    pythons: tuple[str, ...],
) -> None:
    """Measure everything, and print every bar of the CPU backend with what was measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    record = Record(out)
    chosen = sections or SECTIONS
    if again:
        record.forget(chosen)
    wanted = [] if only_judge else list(units(Setting(folder, runs, threads, pythons)))
    for unit in wanted:
        if unit.section in chosen and unit.key not in record.done:
            click.echo(f"{time.strftime('%H:%M:%S')} {unit.key}", err=True)
            run(unit, record)
    click.echo(markdown(verdicts(record.lines)))


if __name__ == "__main__":
    main()
