"""llama.cpp as a peer, through llama-cpp-python's low-level calls: its class `Llama` serves one sequence at a time."""

import ctypes
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Done, Load

PAD = 256  # llama.cpp rounds each sequence's cache up to this


class Engine:
    """A context of `max_batch` sequences. The precision is the GGUF file's; the KV cache is llama.cpp's default, fp16.

    Raises:
        ValueError: no GGUF file was given.
    """

    def __init__(self, load: Load) -> None:
        import llama_cpp as lib

        if load.gguf is None:
            raise ValueError("it reads GGUF only: make a file of the model (benchmarks/README.md) and give --gguf")
        self.version = f"llama.cpp-{lib.__version__}"
        self._lib: Any = lib
        self._log = lib.llama_log_callback(lambda level, text, data: None)  # kept: the library holds a bare pointer
        lib.llama_log_set(self._log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(load.gguf.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        per_sequence = -(-load.max_len // PAD) * PAD
        params.n_seq_max = load.max_batch
        params.n_ctx = per_sequence * load.max_batch
        params.n_batch = max(load.max_len * load.max_batch, params.n_ubatch)
        params.n_threads = params.n_threads_batch = load.threads
        self._context = lib.llama_init_from_model(self._model, params)
        self._batch = lib.llama_batch_init(params.n_batch, 0, 1)
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def run(self, prompts: list[list[int]], output_len: int) -> Done:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        length = len(prompts[0])
        start = perf_counter()
        last = self._decode(prompts, 0)
        first = perf_counter() - start
        answers = [[token] for token in last]
        for i in range(output_len - 1):
            last = self._decode([[token] for token in last], length + i)
            for answer, token in zip(answers, last, strict=True):
                answer.append(token)
        return Done(seconds=perf_counter() - start, first_token_seconds=first, token_ids=answers)

    def _decode(self, rows: list[list[int]], position: int) -> list[int]:
        """Compute each sequence's next tokens, which begin at `position`; the likeliest token after each."""
        batch, ends = self._batch, []
        i = 0
        for sequence, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, position + offset
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = offset == len(tokens) - 1
                i += 1
            ends.append(i - 1)
        batch.n_tokens = i
        if status := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        return [int(np.ctypeslib.as_array(self._logits(end), (self._vocab_size,)).argmax()) for end in ends]

    def _logits(self, row: int) -> Any:
        return self._lib.llama_get_logits_ith(self._context, row)
