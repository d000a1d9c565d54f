"""Taps: after every step, replayed or not, they hold the routes of that step, which add up to the counts."""

import pytest
import torch

from moesaic import LLM, SamplingParams

FAMILIES = ["qwen3_moe", "llama4_text", "deepseek_v3", "longcat_flash", "gemma4_text", "jetmoe", "phimoe", "gpt_oss"]
PROMPTS = [[(7 * i + j) % 128 for j in range(1 + 9 * i)] for i in range(4)]
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def watched(llm, budget=None):
    """The model's statistics, and what the taps held after each step: a list of (tap, ids, weights)."""
    executor = llm.llm_engine.engine.executor
    stats, steps, plain = executor.model.expert_stats, [], executor.execute

    def execute(plan):
        result = plain(plan)
        if plan.advance:
            steps.append([(tap, ids.clone(), w.clone()) for tap, ids, w in stats.of_step(plan.num_tokens)])
            assert all(len(ids) == plan.num_tokens for _, ids, _ in steps[-1])
        return result

    executor.execute = execute
    return stats, steps


def counted(stats, steps):
    total = torch.zeros_like(stats.counts)
    for step in steps:
        assert [tap for tap, *_ in step] == stats.taps
        for tap, ids, weights in step:
            assert ids.dtype is torch.int32 and weights.dtype is torch.float32 and ids.shape == weights.shape
            assert ids.shape[1] == tap.top_k and int(ids.max()) < tap.num_experts
            total[tap.row, : tap.num_experts] += torch.bincount(ids[ids >= 0], minlength=tap.num_experts)
    return total


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_routes_add_up_to_counts(tiny_model, family, eager):
    llm = LLM(
        tiny_model(family),
        skip_tokenizer_init=True,
        threads=1,
        moe_backend="cpu",
        max_num_batched_tokens=16,
        enforce_eager=eager,
    )
    recorded = llm.llm_engine.engine.executor.runner.recorded
    assert eager == (recorded is None or recorded.program is None)
    stats, steps = watched(llm)
    assert not stats.counts.any() and not any(stats.routes)
    llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert stats.counts.any() and torch.equal(counted(stats, steps), stats.counts)


def test_a_layer_with_two_routers_has_two_taps(tiny_model):
    llm = LLM(tiny_model("jetmoe"), skip_tokenizer_init=True, threads=1)
    taps = llm.llm_engine.engine.executor.model.expert_stats.taps
    assert [(tap.layer, tap.part) for tap in taps[:4]] == [(0, "attention"), (0, "ffn"), (1, "attention"), (1, "ffn")]
    assert len({tap.row for tap in taps}) == len(taps) == 6


@pytest.mark.parametrize("family", ["afmoe", "jamba"])
def test_transformers_own_code(tiny_model, family):
    """One model computed in one pass a step, and one sequence after sequence."""
    llm = LLM(tiny_model(family), skip_tokenizer_init=True, threads=1, model_impl="transformers")
    stats, steps = watched(llm)
    llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert stats.counts.any() and torch.equal(counted(stats, steps), stats.counts)
