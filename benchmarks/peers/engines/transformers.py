"""transformers as a peer: `generate` on one padded batch, SDPA attention, its default implementation of experts."""

from time import perf_counter
from typing import Any

import torch
import transformers

from benchmarks.peers.protocol import Done, Load


class _Clock(transformers.StoppingCriteria):
    """Called after each token: notes when the first one was there, and stops nothing."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.first is None:
            self.first = perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Engine:
    """A causal language model with its KV cache."""

    def __init__(self, load: Load) -> None:
        if load.quantization:
            raise ValueError("quantised, it runs on a CPU through other packages only")
        self.version = f"transformers-{transformers.__version__}"
        torch.set_num_threads(load.threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            load.model, dtype=getattr(torch, load.dtype), attn_implementation="sdpa"
        ).eval()
        self._model.generation_config.eos_token_id = None  # every sequence runs to its full length

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], output_len: int) -> Done:
        input_ids = torch.tensor(prompts)  # [B, L]: prompts of one length need no padding
        clock = _Clock()
        start = perf_counter()
        output = self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=output_len,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        seconds = perf_counter() - start
        assert clock.first is not None
        tokens = output[:, input_ids.shape[1] :].tolist()
        return Done(seconds=seconds, first_token_seconds=clock.first - start, token_ids=tokens)
