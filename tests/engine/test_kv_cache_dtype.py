"""--kv-cache-dtype: what keys and values are kept in, on both backends."""

import pytest
import torch

from moesaic import LLM, SamplingParams

PROMPTS = [[5, 9, 200, 17] * n + [n] for n in (1, 4, 13)]
# Of the log-probabilities of a prompt that means nothing, so that all of them are low: the mean difference.
TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.1, "int8": 0.2}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=1)


def llm_of(embedded_path, backend, dtype, **more):
    return LLM(embedded_path, moe_backend=backend, kv_cache_dtype=dtype, dtype="float32", threads=1, **more)


def outputs(llm, prompts):
    return [out.outputs[0] for out in llm.generate(prompts, GREEDY, use_tqdm=False)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_kinds_of_cache(embedded_path, backend, dtype):
    llm = llm_of(embedded_path, backend, dtype)
    specs = llm.llm_engine.engine.executor.model.cache_specs()
    assert {spec.dtype for spec in specs} == {getattr(torch, dtype)}
    expected = prompt_logprobs(llm_of(embedded_path, backend, "auto"))
    assert (prompt_logprobs(llm) - expected).abs().mean() < TOLERANCE[dtype]


def prompt_logprobs(llm):
    """Of a prompt's tokens but the first."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    (out,) = llm.generate([PROMPTS[-1]], params, use_tqdm=False)
    rows = zip(PROMPTS[-1][1:], out.prompt_logprobs[1:], strict=True)
    return torch.tensor([logprobs[token].logprob for token, logprobs in rows])


def test_int8_takes_less_memory_and_gives_the_same_however_it_is_batched(embedded_path):
    llm = llm_of(embedded_path, "cpu", "int8", kv_cache_memory="8MiB")
    wide = llm_of(embedded_path, "cpu", "float32", kv_cache_memory="8MiB")
    blocks, wide_blocks = (x.llm_engine.engine.executor.kv.num_blocks for x in (llm, wide))
    assert blocks > 2.5 * wide_blocks
    together = outputs(llm, PROMPTS)
    alone = [outputs(llm_of(embedded_path, "cpu", "int8", max_num_batched_tokens=5), [p])[0] for p in PROMPTS]
    assert [x.token_ids for x in together] == [x.token_ids for x in alone]
    assert [x.cumulative_logprob for x in together] == [x.cumulative_logprob for x in alone]
