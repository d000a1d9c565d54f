"""A process of `benchmarks.trees`: loads a model with whatever moesaic it finds, and decodes whenever a line comes.

Speaks only the public interface, so that it runs on trees of any age. Prints the median decode step in ms, a line each
run.
"""

import json
import statistics
import sys
import time

from moesaic import LLM, SamplingParams

PROMPT_TOKENS = 16


def main() -> None:
    """MODEL OPTIONS, as `benchmarks.trees` gives them."""
    model, options = sys.argv[1], json.loads(sys.argv[2])
    out, sys.stdout = sys.stdout, sys.stderr
    llm = LLM(
        model,
        dtype=options["dtype"],
        quantization=options["quantization"],
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=1024,
    )
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=options["output_len"], ignore_eos=True)
    for turn, _ in enumerate(sys.stdin):
        for i in range(options["batch_size"]):
            prompt = [(7 * i + 13 * j + turn) % 1000 for j in range(PROMPT_TOKENS)]
            engine.add_request(f"{turn}-{i}", prompt, params)
        times = []
        while engine.has_unfinished_requests():
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        print(statistics.median(times[1:]) * 1e3, file=out, flush=True)


main()
