"""What `moesaic plan` predicts against what happens: `python -m benchmarks.plan_accuracy MODEL... [--json]`.

Each model is served in each precision, in a process of its own. Predicted are the bytes of the weights, the resident
memory with a cache in full use, and the time of a decode step, this with the bandwidth and the rate of products that
were read between the steps of the same run; ratios are of what was predicted over what was measured.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import median
from typing import Any

from moesaic.adapt.machines import Machine
from moesaic.adapt.memory import memory_of
from moesaic.adapt.options import RUNTIME, activation_bytes, step_formats
from moesaic.adapt.predict import step_seconds
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.llm_engine import LLMEngine
from moesaic.engine.resolve import find_model
from moesaic.entrypoints.bench.offline import measured
from moesaic.entrypoints.bench.report import Figure, report
from moesaic.entrypoints.bench.share import Meter
from moesaic.entrypoints.bench.workload import random_prompts
from moesaic.kernels.cpu.limits import STREAM_BYTES
from moesaic.models.floor import decode
from moesaic.models.load import read_spec
from moesaic.models.spec import ModelSpec
from moesaic.weights.quantization import QuantizationPlan

PRECISIONS = ("none", "w8a16", "w4a16")
BATCHES = (1, 8)
CONTEXT, OUTPUT, RUNS = 256, 32, 2
TOKENS = 2560  # that the cache holds: fewer than all runs write, so that all of it is in use at the end


def measure(model: str, precision: str) -> dict[str, Any]:
    """One model in one precision, in this process: predictions and measurements side by side."""
    os.environ["MOESAIC_LOG_LEVEL"] = "WARNING"
    _, spec = read_spec(find_model(model))
    assert isinstance(spec, ModelSpec)
    memory = memory_of(spec, "bfloat16")
    weights = next(weights for weights in memory.weights if weights.scheme == precision).nbytes
    kept = next(cache for cache in memory.caches if cache.dtype == "bfloat16")
    formats = step_formats(spec, QuantizationPlan("bfloat16", precision).format_of, kept)
    cache = int(TOKENS * kept.token) + 64 * kept.sequence
    args = EngineArgs(
        model=model,
        quantization=precision,
        dtype="bfloat16",
        kv_cache_memory=cache,
        max_model_len=TOKENS // 2,
        skip_tokenizer_init=True,
    )
    engine = LLMEngine.from_engine_args(args)
    meter = Meter(engine)
    machine = Machine(name="", device="cpu", memory=0, usable=1.0, bandwidth=1.0, compute={"fp32": 1.0})
    steps: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True, temperature=0.0)
    for batch in BATCHES:
        for run in range(RUNS + 1):
            prompts = random_prompts([CONTEXT] * batch, spec.vocab_size, run)
            _, found = measured(engine, prompts, params, meter)
            now = replace(machine, bandwidth=meter.stream[-1], compute={"fp32": meter.peak[-1]})
            predicted = step_seconds(spec, formats, now, decode(batch, CONTEXT + OUTPUT // 2))
            if run:
                steps[batch].append((predicted, found.decode_step))
    resident = weights + cache + RUNTIME["cpu"] + activation_bytes(spec)
    return {
        "weights": (weights, engine.engine.executor.model.weight_bytes()),
        "resident": (resident, _resident()),
        "steps": steps,
    }


def _resident() -> int:
    """Bytes of this process in memory, the meter's buffer left out."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") - STREAM_BYTES


def _figures(model: str, precision: str) -> list[Figure]:
    """One model in one precision, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan_accuracy", model, "--one", precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    columns = [(m, "MB", [found[m][0] / 1e6], [found[m][1] / 1e6]) for m in ("weights", "resident")]
    for batch, pairs in found["steps"].items():
        ours, theirs = ([pair[i] * 1e3 for pair in pairs] for i in (0, 1))
        columns.append((f"decode_step_{batch}", "ms", ours, theirs))
    case = f"{os.path.basename(model)} {precision}"
    return [
        Figure(bench="plan", case=case, metric=metric, unit=unit, samples=ours, baselines=theirs)
        for metric, unit, ours, theirs in columns
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--json", action="store_true", help="lines of JSON alone")
    parser.add_argument("--one", metavar="PRECISION", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.models[0], args.one)))
        return
    figures = [figure for model in args.models for kind in PRECISIONS for figure in _figures(model, kind)]
    report(figures, "predicted, and as the baseline what was measured", args.json)
    worst = {
        kind: max((abs((f.ratio or 0) - 1) for f in figures if f.metric.startswith(kind)), default=0.0)
        for kind in ("weights", "resident", "decode_step")
    }
    print("worst difference: " + ", ".join(f"{kind} {share:.1%}" for kind, share in worst.items()), file=sys.stderr)
    typical = median(abs((f.ratio or 0) - 1) for f in figures if f.metric.startswith("decode_step"))
    print(f"median difference of decode steps: {typical:.1%}", file=sys.stderr)


if __name__ == "__main__":
    main()
