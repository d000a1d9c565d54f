"""Go through mutated checkpoints by their numbers, in processes that may crash or hang: `python -m tests.fuzz.run`."""

import argparse
import json
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.fuzz.cases import kind_of

SECONDS = 60  # that one checkpoint may take
STARTING = 240  # that a process may take to be ready
COUNTS = {"serve": 10_000, "tools": 2_000}
GROWTH = 300 << 20  # memory beside twice the file
Result = dict[str, Any]


class Worker:
    """A process; `answer` gives what became of a number, whatever becomes of the process."""

    def __init__(self, bases: Path, scratch: Path, way: str) -> None:
        scratch.mkdir(exist_ok=True)
        self.way = way
        self.errors = (scratch / "errors").open("a+b")
        command = [sys.executable, "-m", "tests.fuzz.worker", str(bases), str(scratch), way]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1
        )
        if not self._line(STARTING):
            raise RuntimeError(f"a worker did not start: {self.last_words()}")

    def answer(self, number: int) -> Result:
        """The result of a number; one of a crash or a hang has it in place of steps."""
        assert self.process.stdin is not None
        self.errors.truncate(0)
        start = time.perf_counter()
        self.process.stdin.write(f"{number}\n")
        line = self._line(SECONDS)
        if line:
            return dict(json.loads(line))
        if line is None:
            self.process.kill()
        status = self.process.wait()
        end = f"!hang of {SECONDS} s" if line is None else f"!crash, exit status {status}: {self.last_words()}"
        took = time.perf_counter() - start
        return {"number": number, "kind": kind_of(number, self.way), "what": "?", "size": 0, "steps": {"all": end},
                "seconds": took, "grown": 0}  # fmt: skip

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self) -> str:
        """The end of what it said on standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()[-300:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _line(self, seconds: float) -> str | None:
        """What it says next; None where it says nothing in time, "" where it ended."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None


def run(numbers: Iterable[int], workers: int = 2, tell: bool = False, way: str = "serve") -> list[Result]:
    """The result of each number.

    Args:
        way: what is done with checkpoints: "serve" them, or use the "tools" on them.
        tell: print failures as they come.
    """
    queue: Queue[int] = Queue()
    for number in numbers:
        queue.put(number)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="moesaic-fuzz-") as temporary:
        bases = Path(temporary) / "bases"
        make = "make_bases" if way == "serve" else "make_tool_bases"
        code = f"import sys, pathlib; from tests.fuzz.bases import {make}; {make}(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(bases)], check=True)

        def work(name: str) -> None:
            worker = Worker(bases, Path(temporary) / name, way)
            while True:
                try:
                    number = queue.get_nowait()
                except Empty:
                    break
                result = worker.answer(number)
                results.append(result)
                if tell and failures_of(result):
                    print(describe(result), flush=True)
                if not worker.alive:
                    worker.close()
                    worker = Worker(bases, Path(temporary) / name, way)
            worker.close()

        threads = [threading.Thread(target=work, args=(f"worker-{i}",)) for i in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sorted(results, key=lambda result: result["number"])


def failures_of(result: Result) -> list[str]:
    """What should not have happened."""
    wrong = [f"{step} ended with {end[1:]}" for step, end in result["steps"].items() if end.startswith("!")]
    if result["grown"] > 2 * result["size"] + GROWTH:
        wrong.append(f"took {result['grown'] / 2**20:.0f} MiB for a file of {result['size'] / 2**20:.1f} MiB")
    return wrong


def describe(result: Result) -> str:
    """A failure in a line."""
    return f"{result['number']} ({result['kind']}, {result['what']}): {'; '.join(failures_of(result))}"


def summary(results: list[Result]) -> str:
    """How many were refused, and how, of each kind."""
    lines = []
    for kind in sorted({result["kind"] for result in results}):
        of_kind = [result for result in results if result["kind"] == kind]
        ends = Counter(end for result in of_kind for end in {e for e in result["steps"].values() if e[0] != "!"})
        refused = sum(any(end != "ok" for end in result["steps"].values()) for result in of_kind)
        named = ", ".join(f"{count} {end}" for end, count in ends.most_common() if end != "ok")
        lines.append(
            f"{kind:>17}: {len(of_kind):5} files, {len(of_kind) - refused:5} served, {refused:5} refused ({named})"
        )
    slowest, largest = max(results, key=lambda r: r["seconds"]), max(results, key=lambda r: r["grown"])
    lines.append(f"slowest: {slowest['number']} ({slowest['kind']}), {slowest['seconds']:.1f} s")
    lines.append(
        f"largest: {largest['number']} ({largest['kind']}), {largest['grown'] / 2**20:.0f} MiB more than before"
    )
    failed = [result for result in results if failures_of(result)]
    return "\n".join([*lines, f"{len(results)} files, {len(failed)} failures", *map(describe, failed)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="10,000 that are served, 2,000 for the tools")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, action="append", help="this number alone; may be given more than once")
    parser.add_argument("--kind", action="append", help="of these kinds alone")
    parser.add_argument("--way", choices=("serve", "tools"), default="serve", help="what is done with checkpoints")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    numbers = args.only or range(args.first, args.first + (args.count or COUNTS[args.way]))
    start = time.perf_counter()
    results = run(
        [n for n in numbers if not args.kind or kind_of(n, args.way) in args.kind], args.workers, True, args.way
    )
    if args.only:
        print(json.dumps(results, indent=1))
    print(summary(results), f"in {time.perf_counter() - start:.0f} s")
    sys.exit(1 if any(map(failures_of, results)) else 0)


if __name__ == "__main__":
    main()
