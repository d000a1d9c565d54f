"""Two built trees of this repository against each other: the same models, the same tokens, in turns.

    python -m benchmarks.trees OLD NEW .bench/qwen3-moe-mini .bench/mixtral-mini --runs 12

Each tree has a process of its own per model, with the model loaded once; they decode in turns, so that a machine whose
memory changes its speed changes it for both. OLD and NEW are `folder` or `folder:libraries`, where `libraries` is a
folder of its built kernels (else those that are installed for it).
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

WORKER = Path(__file__).with_name("trees_worker.py")


class Tree:
    """A process that decodes with one tree's engine, whenever it is asked to."""

    def __init__(self, tree: str, model: str, options: dict[str, Any]) -> None:
        folder, _, libraries = tree.partition(":")
        environment = {**os.environ, "PYTHONPATH": folder}
        if libraries:
            environment["MOESAIC_CPU_LIBRARIES"] = libraries
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), model, json.dumps(options)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run()  # warms up, and says when it is ready

    def run(self) -> float:
        """Milliseconds of a decode step, the median of one run."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.process.args} ended: see what it wrote above")
        return float(line)

    def stop(self) -> None:
        """End the process."""
        self.process.communicate("")


@click.command()
@click.argument("old")
@click.argument("new")
@click.argument("models", nargs=-1, required=True)
@click.option("--runs", default=12, show_default=True, help="turns of each tree")
@click.option("--batch-size", default=1, show_default=True)
@click.option("--output-len", default=64, show_default=True, help="tokens of each sequence in a run")
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--quantization", default="none", show_default=True)
def main(old: str, new: str, models: tuple[str, ...], runs: int, **options: Any) -> None:
    """Decode steps of the tree NEW against those of OLD, on MODELS."""
    for model in models:
        trees = [Tree(tree, str(Path(model).resolve()), options) for tree in (old, new)]
        pairs = [[tree.run() for tree in (trees if turn % 2 else trees[::-1])] for turn in range(runs)]
        pairs = [pair if turn % 2 else pair[::-1] for turn, pair in enumerate(pairs)]
        for tree in trees:
            tree.stop()
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        name = f"{Path(model).name} {options['dtype']} {options['quantization']} batch={options['batch_size']}"
        click.echo(f"{name:48}  old {before:7.3f} ms  new {after:7.3f} ms  new/old {ratio:.3f}")
        figure = {"bench": "trees", "case": name, "metric": "decode_step", "value": after, "unit": "ms"}
        click.echo(json.dumps({**figure, "baseline": before, "ratio": ratio, "runs": runs}))


if __name__ == "__main__":
    main()
