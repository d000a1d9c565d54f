"""A neighbour: how fast an engine decodes while a foreign process keeps one of its cores busy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.llm_engine import LLMEngine
from moesaic.entrypoints.bench.offline import GREEDY, case_of, check_batch_size, run_batch
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.workload import random_prompts

BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print('busy', flush=True)\nwhile True: pass"
SETTLE_SECONDS = 0.2


@contextmanager
def busy_process() -> Iterator[subprocess.Popen[str]]:
    """A process that computes without end on the last core that this one may use; stopped at first."""
    core = max(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(core)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


def neighbour(
    engine: LLMEngine, *, batch_size: int, input_len: int, output_len: int, runs: int, warmup: int, seed: int
) -> list[Figure]:
    """Decode undisturbed and beside a busy process, in turns; the baseline is the undisturbed run just before."""
    check_batch_size(engine, batch_size)
    params = SamplingParams(max_tokens=output_len, ignore_eos=True, **GREEDY)
    alone, disturbed = [], []

    def speed(i: int) -> float:
        prompts = random_prompts([input_len] * batch_size, engine.engine.info.vocab_size, seed + i)
        steps = [step.whole for step in run_batch(engine, prompts, params).steps if step.steady]
        return batch_size / fmean(steps)

    for i in range(warmup):
        speed(i)
    with busy_process() as process:
        for i in range(warmup, warmup + runs):
            alone.append(speed(2 * i))
            process.send_signal(signal.SIGCONT)
            time.sleep(SETTLE_SECONDS)
            disturbed.append(speed(2 * i + 1))
            process.send_signal(signal.SIGSTOP)
            time.sleep(SETTLE_SECONDS)
    case = f"{case_of(engine)} batch={batch_size} in={input_len} out={output_len}"
    return [
        Figure(bench="neighbour", case=case, metric="alone", unit="tokens/s", samples=alone),
        Figure(bench="neighbour", case=case, metric="disturbed", unit="tokens/s", samples=disturbed, baselines=alone),
    ]
