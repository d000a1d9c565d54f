"""The process of one start: `python -m moesaic.entrypoints.bench.started ARGS SPAWNED`; prints a Start as JSON.

ARGS are EngineArgs as JSON, SPAWNED the monotonic clock when the parent made this process.
"""

import time

BEGAN = time.monotonic()

import builtins  # noqa: E402  (the clock is read before anything else is imported)
import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

PROMPT_TOKENS = 16


class ImportClock:
    """Seconds in imports, counted once however they nest, while it stands in the place of `__import__`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._plain = builtins.__import__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._depth:
            return self._plain(*args, **kwargs)
        self._depth = 1
        start = time.monotonic()
        try:
            return self._plain(*args, **kwargs)
        finally:
            self.seconds += time.monotonic() - start
            self._depth = 0


def status(field: str) -> int:
    """A size in /proc/self/status, in bytes; 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    return status("VmHWM")


def timed(function: Callable[..., Any], spent: dict[str, float], name: str, clock: ImportClock) -> Callable[..., Any]:
    """`function`, which adds its seconds, less those of imports, to spent[name]."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start, imports = time.monotonic(), clock.seconds
        result = function(*args, **kwargs)
        spent[name] = spent.get(name, 0.0) + time.monotonic() - start - (clock.seconds - imports)
        return result

    return run


def main(arguments: str, spawned: float) -> None:
    """Start, generate one token, and say what it took."""
    clock = ImportClock()
    builtins.__import__ = clock
    from moesaic.core.log import setup_logging
    from moesaic.engine.args import EngineArgs
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.entrypoints.bench.offline import GREEDY, run_batch
    from moesaic.entrypoints.bench.starting import Start, as_json
    from moesaic.entrypoints.bench.workload import random_prompts
    from moesaic.worker import executor

    setup_logging()
    spent: dict[str, float] = {}
    # the two long parts of a start, wherever they are called from
    executor.load_model = timed(executor.load_model, spent, "weights", clock)
    executor.LocalExecutor.__init__ = timed(executor.LocalExecutor.__init__, spent, "executor", clock)  # type: ignore[method-assign]
    start, before = time.monotonic(), clock.seconds
    engine = LLMEngine.from_engine_args(EngineArgs(**json.loads(arguments)))
    ready, inside = time.monotonic(), clock.seconds
    from moesaic.core.sampling_params import SamplingParams

    prompts = random_prompts([PROMPT_TOKENS], engine.engine.info.vocab_size, 0)
    run_batch(engine, prompts, SamplingParams(max_tokens=1, ignore_eos=True, **GREEDY))
    end = time.monotonic()
    kv, blocks = engine.engine.executor.kv, -(-(PROMPT_TOKENS + 1) // engine.engine.info.block_size)
    print(
        as_json(
            Start(
                imports=BEGAN - spawned + clock.seconds,
                weights=spent["weights"],
                kv=spent["executor"] - spent["weights"],
                other=start - BEGAN - before + ready - start - (inside - before) - spent["executor"],
                first_token=end - ready - (clock.seconds - inside),
                peak=peak_memory(),
                weight_bytes=engine.engine.executor.model.weight_bytes(),
                kv_bytes=blocks * kv.bytes_per_block + kv.bytes_per_slot,
            )
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
