"""From nothing to the first token: where the seconds go, and the memory that a start needs at its highest.

Each start is a process of its own (`started`), so that times and peaks are its own. Torch-free: this side only waits.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.core.errors import MoesaicError
from moesaic.engine.args import EngineArgs
from moesaic.engine.resolve import find_model
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.workload import model_case

GIGA = 1e9
MEGA = 1e6
BLOCK = 1 << 20
CACHE = "MOESAIC_CACHE"  # the variable that says where packed weights are kept
SETTLE_SECONDS = 3  # about what imports take: until then a virtual machine may take back what others have freed
TOUCH = """
import ctypes, mmap, sys, time
size, settle = int(sys.argv[1]), float(sys.argv[2])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
time.sleep(settle)
start = time.perf_counter()
ctypes.memset(address, 1, size)
print(time.perf_counter() - start)
"""
IDLE = "import torch, moesaic.entrypoints.bench.started as s; print(s.peak_memory())"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one start took; seconds and bytes.

    Attributes:
        imports: the interpreter's start and all modules, wherever they are imported.
        weights, kv, other: building and filling the model; allocating its cache; what else the engine does until ready.
        first_token: of a short prompt.
        peak: the most memory that the process held (VmHWM).
        weight_bytes, kv_bytes: what it holds in the end; of the KV cache, the blocks and the state slot in use (others
            are not committed).
    """

    imports: float
    weights: float
    kv: float
    other: float
    first_token: float
    peak: int
    weight_bytes: int
    kv_bytes: int

    @property
    def seconds(self) -> float:
        return self.imports + self.weights + self.kv + self.other + self.first_token

    @property
    def own_seconds(self) -> float:
        """Without imports, which weights do not make longer."""
        return self.seconds - self.imports


def start_once(args: EngineArgs, cache: str) -> Start:
    """Start an engine in a process of its own.

    Args:
        cache: folder in which it may keep packed weights.

    Raises:
        MoesaicError: it did not get as far as a token.
    """
    spawned = time.monotonic()
    command = [sys.executable, "-m", "moesaic.entrypoints.bench.started", json.dumps(asdict(args)), repr(spawned)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, CACHE: cache})
    if done.returncode:
        raise MoesaicError(f"the engine's process ended with status {done.returncode}; it has said why above")
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def idle_memory() -> int:
    """Bytes of a process that has imported torch and does nothing."""
    done = subprocess.run([sys.executable, "-c", IDLE], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def fresh_memory(size: int) -> float:
    """Seconds that writing so many bytes of huge pages takes a process for the first time: the least that a start needs
    for as many bytes of weights. A virtual machine's memory may first have to be made by its host."""
    command = [sys.executable, "-c", TOUCH, str(size), str(SETTLE_SECONDS)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def read_into_page_cache(folder: str | Path) -> None:
    """Make the next read of every file under a folder come from memory: the engine reads past the page cache what is
    not in it."""
    buffer = bytearray(BLOCK)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def drop_from_page_cache(folder: str | Path) -> None:
    """Make the next read of every file under a folder come from the disk."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that are not written yet stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def size_of_files(folder: str | Path, pattern: str = "*") -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob(pattern) if path.is_file())


def size_of_weights(checkpoint: str) -> int:
    """Bytes of a checkpoint's tensors."""
    return size_of_files(checkpoint, "*.safetensors") or size_of_files(checkpoint, "*.bin")


@dataclass(frozen=True)
class Way:
    """A way to start.

    Attributes:
        name: of the way, in the figures' cases.
        prepare: done before each start, uncounted.
        size: of the files that the start reads, in bytes; asked after it.
    """

    name: str
    prepare: Callable[[], object]
    size: Callable[[], int]


def start(args: EngineArgs, runs: int) -> list[Figure]:
    """Starts with the files in the page cache, and with none of them there; where the engine keeps packed weights on
    disk (of quantised models), also the first start of all, which makes them. One start before them does not count.

    Raises:
        MoesaicError: a start failed.
    """
    checkpoint = find_model(args.model, args.revision, args.download_dir)
    with tempfile.TemporaryDirectory(prefix="moesaic-bench-", dir=cache_root()) as cache:

        def read_size() -> int:
            return size_of_files(cache) or size_of_weights(checkpoint)

        def forget() -> None:
            drop_from_page_cache(checkpoint)
            drop_from_page_cache(cache)

        def remember() -> None:
            read_into_page_cache(cache if size_of_files(cache) else checkpoint)

        ways = [Way("cached", remember, read_size), Way("from disk", forget, read_size)]
        start_once(args, cache)
        if size_of_files(cache):
            ways.insert(0, Way("first", lambda: _empty(cache), lambda: size_of_weights(checkpoint)))
        idle = idle_memory()
        starts: dict[str, list[Start]] = {way.name: [] for way in ways}
        sizes: dict[str, list[int]] = {way.name: [] for way in ways}
        fresh: list[float] = []
        for _ in range(runs):
            for way in ways:  # in turns
                way.prepare()
                starts[way.name].append(start_once(args, cache))
                sizes[way.name].append(way.size())
            weights = starts[ways[0].name][-1].weight_bytes
            fresh.append(fresh_memory(weights) / (weights / GIGA))
    case = model_case(args.model, precision_of(args))
    figures = [
        figure for way in ways for figure in figures_of(f"{case} {way.name}", starts[way.name], sizes[way.name], idle)
    ]
    return [*figures, Figure(bench="start", case=case, metric="fresh_memory", unit="s/GB", samples=fresh)]


def precision_of(args: EngineArgs) -> str:
    """What weights are kept in, as figures name it."""
    scheme: str | None = getattr(args, "quantization", None)
    return args.dtype if scheme in (None, "none") else str(scheme)


def cache_root() -> str | None:
    """Where a folder for packed weights is made: beside the usual one, so on the disk that it lies on."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    usual.mkdir(parents=True, exist_ok=True)
    return str(usual)


def _empty(folder: str) -> None:
    for path in Path(folder).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def figures_of(case: str, starts: Sequence[Start], sizes: Sequence[int], idle: int) -> list[Figure]:
    """What starts of one way took.

    Args:
        sizes: bytes that each of them read.
        idle: bytes of an idle process with torch.
    """

    def figure(metric: str, unit: str, samples: Sequence[float], baselines: Sequence[float] | None = None) -> Figure:
        return Figure(bench="start", case=case, metric=metric, unit=unit, samples=samples, baselines=baselines)

    parts = ("imports", "weights", "kv", "other", "first_token")
    needed = [(one.weight_bytes + one.kv_bytes + idle) / MEGA for one in starts]
    # a second is allowed for whatever does not grow with the weights
    each = [max(0.0, one.own_seconds - 1) / (size / GIGA) for one, size in zip(starts, sizes, strict=True)]
    return [
        figure("seconds", "s", [one.seconds for one in starts]),
        *(figure(part, "s", [getattr(one, part) for one in starts]) for part in parts),
        figure("seconds_per_gb", "s/GB", each),
        figure("read", "GB", [size / GIGA for size in sizes]),
        figure("peak", "MB", [one.peak / MEGA for one in starts], needed),
        figure("weights_held", "MB", [one.weight_bytes / MEGA for one in starts]),
        figure("idle", "MB", [idle / MEGA]),
    ]


def as_json(start: Start) -> str:
    """The line that the started process prints."""
    values: dict[str, Any] = asdict(start)
    return json.dumps(values)
