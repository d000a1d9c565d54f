"""Simulated routing in an engine: who shares a batch changes nothing, counts follow, and the log says so."""

import logging

import pytest
import torch

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError

PROMPTS = [[(11 * i + 7 * j) % 128 for j in range(5 + 9 * i)] for i in range(4)]


def engine(path, simulate, **kwargs):
    kwargs = {"skip_tokenizer_init": True, "threads": 1, "kv_cache_memory": "16MiB", **kwargs}
    return LLM(path, simulate_routing=simulate, load_format="dummy", **kwargs)


def generate(llm, which, tokens=6):
    params = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, seed=7 + i) for i in which]
    return [o.outputs[0].token_ids for o in llm.generate([PROMPTS[i] for i in which], params, use_tqdm=False)]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "phimoe"])
@pytest.mark.parametrize("simulate", ["uniform", "zipf:1.2"])
def test_routes_are_drawn_alike_in_any_batch(tiny_model, family, simulate, log):
    with log.at_level(logging.WARNING, "moesaic"):
        llm = engine(tiny_model(family), simulate)
    assert "SIMULATED" in log.text and "means nothing" in log.text
    together = generate(llm, range(4))
    assert [generate(llm, [i])[0] for i in range(4)] == together
    chunked = engine(tiny_model(family), simulate, max_num_batched_tokens=9)
    assert generate(chunked, range(4)) == together


def test_every_expert_of_a_uniform_draw_is_used_and_counted(tiny_model):
    llm = engine(tiny_model("qwen3_moe"), "uniform")
    model = llm.llm_engine.engine.executor.model
    model.expert_stats.reset()
    generate(llm, range(4), tokens=40)
    counts = model.expert_stats.counts[[layer.index for layer in llm.llm_engine.engine.info.moe.layers]]
    routed = sum(map(len, PROMPTS)) + 4 * 39
    assert (counts.sum(1) == 3 * routed).all()
    assert counts.min() > 0.6 * counts.float().mean()
    skewed = engine(tiny_model("qwen3_moe"), "zipf:2")
    stats = skewed.llm_engine.engine.executor.model.expert_stats
    stats.reset()
    generate(skewed, range(4), tokens=40)
    assert (stats.counts[:2].max(1).values > 2 * stats.counts[:2].float().mean(1)).all()
    assert (stats.counts[:2].sum(1) == 3 * routed).all()


def test_weights_are_the_routers_own(tiny_model):
    llm = engine(tiny_model("qwen3_moe"), "uniform")
    router = llm.llm_engine.engine.executor.model.layers[0].mlp.router
    seen, choose = [], router.choose

    def watched(logits, *rest):
        seen.append((logits.clone(), choose(logits, *rest)))
        return seen[-1][1]

    router.choose = watched
    generate(llm, [2], tokens=1)
    logits, routing = seen[0]
    own = logits.softmax(-1).gather(1, routing.ids.long())
    torch.testing.assert_close(routing.weights, own / own.sum(1, keepdim=True))


def test_what_cannot_be_simulated_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="no experts"):
        engine(tiny_model("llama"), "uniform")
    with pytest.raises(ConfigError, match="must be uniform"):
        engine(tiny_model("qwen3_moe"), "gaussian")
    llm = engine(tiny_model("qwen3_moe"), "uniform")
    with pytest.raises(ConfigError, match="simulated"):
        llm.register_moe_routing_func(lambda scores, tags: scores, name="mine")
