"""Recorded decode steps: the bits of the plain way at every batch size, and who takes the plain way."""

import pytest
import torch

from moesaic import LLM, SamplingParams
from moesaic.worker.recorded import RecordedStep

CAPACITY = 9
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def engine(path, **kwargs):
    return LLM(path, skip_tokenizer_init=True, threads=1, max_num_seqs=CAPACITY, moe_backend="cpu", **kwargs)


def prompts(count):
    return [[(7 * i + j) % 128 for j in range(1 + 3 * i)] for i in range(count)]


def runner_of(llm):
    return llm.llm_engine.engine.executor.runner


class Compared(RecordedStep):
    """Computes each replayed step in the plain way too, and notes its size."""

    def logits(self, batch):
        replayed = super().logits(batch)
        if replayed is not None:
            replayed = replayed.clone()
            plain = self.model.logits(self.model(batch, self.caches))  # writes the same keys and values again
            assert torch.equal(plain, replayed)
            self.sizes.add(batch.num_tokens)
        return replayed


RECORDED = [
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "mixtral",
    "llama",
    "llama4_text",
    "afmoe",
    "phimoe",
    "deepseek_v3",
    "mistral4",
    "longcat_flash",
    "glm_moe_dsa",
    "jetmoe",
    "mimo_v2_flash",
    "gemma4_text",
    "beam",
]


@pytest.mark.parametrize("family", RECORDED)
def test_the_bits_are_those_of_the_plain_way_at_every_batch_size(tiny_model, family):
    llm = engine(tiny_model(family))
    step = runner_of(llm).recorded
    assert step.program is not None
    step.__class__, step.caches, step.sizes = Compared, runner_of(llm).caches, set()
    params = [SamplingParams(temperature=0, max_tokens=6 + i, ignore_eos=True) for i in range(CAPACITY)]
    llm.generate(prompts(CAPACITY), params, use_tqdm=False)
    assert step.sizes == set(range(1, CAPACITY + 1))


def test_cuts_lie_before_the_experts_of_every_layer(tiny_model):
    program = runner_of(engine(tiny_model("qwen3_moe", mlp_only_layers=[1]))).recorded.program
    assert [program.names[cut] for cut in program.cuts] == ["fused_moe", "fused_moe"]
    assert [program.names[cut - 1] for cut in program.cuts] == ["route", "route"]


def test_what_weights_a_replay_reads_is_decided_when_it_runs(tiny_model):
    """The page table is read where it lies: experts may move between steps."""
    path = tiny_model("qwen3_moe")
    expected = engine(path).generate(prompts(3), PARAMS, use_tqdm=False)
    llm = engine(path)
    for layer in runner_of(llm).model.layers:
        pages = layer.mlp.experts.pages
        order = torch.randperm(len(pages.slot_of), generator=torch.Generator().manual_seed(0))
        weights = [(pages.gate_up[slot], pages.down[slot]) for slot in range(len(order))]
        for expert, slot in enumerate(order.tolist()):
            pages.place(slot, *weights[expert])
        pages.slot_of.copy_(order)
    outputs = llm.generate(prompts(3), PARAMS, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in expected]


def test_counters_are_written_inside(tiny_model):
    path = tiny_model("qwen3_moe")
    counts = []
    for eager in (False, True):
        llm = engine(path, enforce_eager=eager)
        llm.generate(prompts(4), PARAMS, use_tqdm=False)
        counts.append(runner_of(llm).model.expert_stats.counts)
    assert counts[0].any() and torch.equal(*counts)


def test_a_hook_takes_the_plain_way(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    expected = llm.generate(prompts(2), PARAMS, use_tqdm=False)
    seen = []
    hook = runner_of(llm).model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    outputs = llm.generate(prompts(2), PARAMS, use_tqdm=False)
    assert len(seen) >= PARAMS.max_tokens
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in expected]
    hook.remove()
    seen.clear()
    llm.generate(prompts(2)[1:], PARAMS, use_tqdm=False)
    assert len(seen) == 0


def test_the_reference_backend_is_not_recorded_and_says_why(tiny_model, log):
    llm = LLM(tiny_model("llama"), skip_tokenizer_init=True, threads=1, moe_backend="reference")
    runner = runner_of(llm)
    assert runner.recorded.program is None
    RecordedStep(runner.model, runner.caches, runner.table.singles)
    assert log.records[-1].message == "decode steps are not recorded: aten.embedding.default is computed by torch"
