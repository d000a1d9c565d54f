"""How long weights take to load, against what reading them costs at least; all in one run, in turns.

    python benchmarks/load_speed.py MODEL [--runs 5] [--folder DIR] [--quantization none]

- `hf`: MODEL, sharded safetensors in the page cache, against `cat` of the same files to /dev/null
- `packed`: the same weights as `moesaic convert --format packed` writes them (into a temporary folder), dropped from
  the page cache, against a direct read of these files (O_DIRECT, four threads) into memory that was touched before

Memory that the system has not lent for a while costs seconds a GB in some virtual machines, whoever touches it first:
as much as a model takes is touched and given back before each load, and what that took is printed too.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from moesaic.adapt import convert
from moesaic.adapt.conversion.convert import Packing
from moesaic.adapt.conversion.folder import forget_pages
from moesaic.core.config import DType, ModelConfig
from moesaic.engine.resolve import EMBEDDED_PATH, checkpoint_dtype, physical_cores
from moesaic.kernels.cpu.arena import allocate
from moesaic.models.load import load_model, read_config

PIECE = 16 << 20
READERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of safetensors")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", help="where the packed files are written; needs as much room as the model")
    parser.add_argument("--quantization", default="none")
    args = parser.parse_args()
    torch.set_num_threads(physical_cores())
    load(str(EMBEDDED_PATH))  # imports, libraries
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        packed = str(Path(made) / "packed")
        convert(args.model, packed, format="packed", packing=Packing(args.quantization))
        measure(args.model, packed, args.runs)


def measure(model: str, packed: str, runs: int) -> None:
    """Each in its turn; then a line for people, and one of JSON for each figure."""
    stored, files = sorted(Path(model).glob("*.safetensors")), sorted(Path(packed).glob("*.moepack"))
    nbytes = {"hf": total(stored), "packed": total(files)}
    cat(stored)
    seconds: dict[str, list[float]] = {}

    def add(what: str, job: Callable[[], object]) -> None:
        start, before = time.perf_counter(), os.times()
        made = job()
        seconds.setdefault(what, []).append(time.perf_counter() - start)
        busy = sum(os.times()[:4]) - sum(before[:4])  # of this process and of `cat`
        seconds.setdefault(f"{what} cpu", []).append(busy)
        del made  # to give a model back is no part of loading it

    for _ in range(runs):
        add("touch", lambda: touch(2 * nbytes["hf"]))
        cat(stored)  # what took memory may have taken it from the page cache
        add("cat", lambda: cat(stored))
        add("hf", lambda: load(model))
        forget(files)
        add("direct", direct_reader(files))
        forget(files)
        add("touch", lambda: touch(2 * nbytes["packed"]))
        add("packed", lambda: load(packed))
    for case, baseline in (("hf", "cat"), ("packed", "direct")):
        report(Path(model).name, case, baseline, nbytes[case], seconds)
    print(f"memory for it: touched in {statistics.median(seconds['touch']):.2f} s")


def report(model: str, case: str, baseline: str, nbytes: int, seconds: dict[str, list[float]]) -> None:
    """Medians of one comparison."""
    mine, theirs = statistics.median(seconds[case]), statistics.median(seconds[baseline])
    cpu = statistics.median(seconds[f"{case} cpu"]), statistics.median(seconds[f"{baseline} cpu"])
    best = min(seconds[case]), min(seconds[baseline])
    print(
        f"{model} {case}: {nbytes / 1e9:.2f} GB in {mine:.2f} s, {baseline} {theirs:.2f} s: {mine / theirs:.2f} times "
        f"(of CPU time {cpu[0]:.2f} and {cpu[1]:.2f} s; "
        f"the best of each: {best[0]:.2f} and {best[1]:.2f} s, {best[0] / best[1]:.2f} times)"
    )
    line = {"bench": "load_speed", "case": f"{model} {case}", "metric": "load", "value": mine, "unit": "s"}
    print(json.dumps({**line, "baseline": theirs, "ratio": mine / theirs, "runs": len(seconds[case])}))


def cat(files: Sequence[Path]) -> None:
    subprocess.run(["cat", *map(str, files)], stdout=subprocess.DEVNULL, check=True)


def total(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def touch(nbytes: int) -> None:
    """Take so much memory, and give it back."""
    allocate(nbytes).view(-1)[::4096].fill_(1)


def forget(files: Sequence[Path]) -> None:
    for file in files:
        forget_pages(str(file))


def load(model: str) -> object:
    config = ModelConfig(
        path=model,
        name=model,
        dtype=dtype_of(model),
        max_model_len=16,
        load_format="auto",
        seed=0,
    )
    return load_model(config, "cpu", 16, False)


def dtype_of(model: str) -> DType:
    found: DType = checkpoint_dtype(read_config(model))  # type: ignore[assignment]
    return found


def direct_reader(files: Sequence[Path]) -> Callable[[], None]:
    """A function that reads all files past the page cache into memory that is there already."""
    into = mmap.mmap(-1, total(files))
    torch.frombuffer(into, dtype=torch.uint8)[::4096].fill_(1)

    def read() -> None:
        jobs, begin = [], 0
        for file in files:
            fd, size = os.open(file, os.O_RDONLY | os.O_DIRECT), file.stat().st_size
            jobs += [(fd, begin + at, min(PIECE, size - at), at) for at in range(0, size, PIECE)]
            begin += size
        view = memoryview(into)
        with ThreadPoolExecutor(READERS) as pool:
            counts = list(pool.map(lambda j: os.preadv(j[0], [view[j[1] : j[1] + j[2]]], j[3]), jobs))
        for fd in {job[0] for job in jobs}:
            os.close(fd)
        assert sum(counts) == begin, "a short read"

    return read


if __name__ == "__main__":
    main()
