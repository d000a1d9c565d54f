"""Layers with windows keep the keys and values of all tokens, so that a prefix in the cache serves every layer."""

import pytest

from moesaic import LLM, SamplingParams

PREFIX = [(7 * i) % 120 + 1 for i in range(64)]


@pytest.mark.parametrize("family", ["gemma2", "ministral"])
def test_a_prefix_hit_far_behind_the_window_changes_nothing(tiny_model, family):
    prompts = [{"prompt_token_ids": [*PREFIX, 5, 6]}, {"prompt_token_ids": [*PREFIX, 9]}]
    params = SamplingParams(max_tokens=12, temperature=0)
    tokens = {}
    for cached in (True, False):
        llm = LLM(
            tiny_model(family),
            skip_tokenizer_init=True,
            kv_cache_memory="2MiB",
            enable_prefix_caching=cached,
        )
        windows = [layer.attention.window for layer in llm.llm_engine.engine.executor.model.spec.layers]
        assert set(windows) == {None, 6}
        outputs = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
        tokens[cached] = [output.outputs[0].token_ids for output in outputs]
        assert outputs[1].num_cached_tokens == (64 if cached else 0)
    assert tokens[True] == tokens[False]
