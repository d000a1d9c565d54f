"""Through the whole engine, greedily: the tokens that transformers generates, for every family."""

import pytest
import torch

from moesaic import LLM, SamplingParams
from tests.tiny_models import FAMILIES

TOKENS = 64
PROMPTS = [[5, 9, 60, 3], [7], list(range(20, 57)), [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89] * 7]
VARIANTS = [
    *[(family, {}) for family in FAMILIES],
    ("llama", {"num_key_value_heads": 4, "tie": True}),
    ("mixtral", {"sliding_window": 9, "num_attention_heads": 8}),
    ("qwen3_moe", {"mlp_only_layers": [1], "num_key_value_heads": 1}),
    ("olmoe", {"num_key_value_heads": 4, "norm_topk_prob": True, "tie": True}),
]


def transformers_greedy(path: str, prompt: list[int], tokens: int) -> list[int]:
    """Greedy tokens by transformers' own generate, eager attention, fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=str)
def test_same_greedy_tokens_as_transformers(tiny_model, family, overrides):
    path = tiny_model(family, **overrides)
    llm = LLM(path, skip_tokenizer_init=True, threads=1, max_num_batched_tokens=32)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output.outputs[0].token_ids == transformers_greedy(path, prompt, TOKENS)


def test_the_embedded_model_too(embedded_path):
    llm = LLM("moe-model", dtype="float32", threads=1)
    tokenizer = llm.tokenizer
    prompts = [tokenizer.encode(text) for text in ("Explain MoE architecture", "What is 12 + 34?", "{")]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == transformers_greedy(embedded_path, prompt, TOKENS)
