"""How long `moesaic inspect` takes, and its memory: on a large checkpoint, and on a folder of 10,000 expert files.

    python benchmarks/inspect_speed.py [FOLDER ...] [--experts 1250] [--layers 8]

Each case runs in a process of its own, as a user would start it; the folder of expert files is made in a temporary
place, one file an expert, with tensors of a few bytes: only headers are read.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help="checkpoints to look at")
    parser.add_argument("--experts", type=int, default=1250)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    for folder in args.folders:
        measure(Path(folder).name, folder)
    with tempfile.TemporaryDirectory() as made:
        make_expert_files(Path(made), args.layers, args.experts)
        measure(f"{args.layers * args.experts} expert files", made)


def make_expert_files(folder: Path, layers: int, experts: int) -> None:
    """`layer_0/expert_3.bin`, ... of one small state dict each, and a config that nobody knows."""
    config = {"architectures": ["MoEModel"], "num_hidden_layers": layers, "experts_num": experts, "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    parts = {part: torch.zeros(4, 4, dtype=torch.bfloat16) for part in ("gate_proj", "up_proj", "down_proj")}
    torch.save({f"{part}.weight": tensor for part, tensor in parts.items()}, folder / "expert.bin")
    data = (folder / "expert.bin").read_bytes()
    (folder / "expert.bin").unlink()
    for layer in range(layers):
        (folder / f"layer_{layer}").mkdir()
        for expert in range(experts):
            (folder / f"layer_{layer}" / f"expert_{expert}.bin").write_bytes(data)
    torch.save({"weight": torch.zeros(8, 4)}, folder / "embed_tokens.bin")


def measure(case: str, folder: str) -> None:
    """Print a line for people, then one of JSON for each figure."""
    seconds, megabytes = [], []
    for _ in range(RUNS):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
        code = (
            "import sys; from moesaic.entrypoints.cli.main import main\n"
            "try: main(['inspect', sys.argv[1], '--json'])\n"
            "except SystemExit: pass\n"
            # not ru_maxrss, which counts what the process was before it became this one
            "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, env=os.environ)
        seconds.append(time.perf_counter() - start)
        megabytes.append(int(done.stderr.split()[-1]) / 1024)
        processor = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    tensors = json.loads(done.stdout)["tensors"]
    print(
        f"{case}: {tensors} tensors, {min(seconds):.2f} s (of {RUNS} runs, the slowest {max(seconds):.2f} s; "
        f"{processor:.2f} s of processor), {max(megabytes):.0f} MB"
    )
    for metric, value, unit in (("seconds", min(seconds), "s"), ("memory", max(megabytes), "MB")):
        figure = {"bench": "inspect", "case": case, "metric": metric, "value": round(value, 3), "unit": unit}
        print(json.dumps(figure | {"baseline": None, "ratio": None, "runs": RUNS}))


if __name__ == "__main__":
    main()
