"""Statistics against a count made here of who went where: each token of each sequence once, whatever was computed how
often, in which chunks and beside whom."""

import pytest

from moesaic import LLM, SamplingParams
from moesaic.core.errors import RequestError
from moesaic.experts.counting import MOST_TAGS, OTHER_TAGS
from moesaic.experts.stats import ExpertStats

FAMILIES = [  # each routes in a way of its own
    "qwen3_moe",
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "llama4_text",
    "phimoe",
    "gpt_oss",
    "longcat_flash",
    "gemma4_text",
    "jetmoe",
    "granitemoehybrid",
    "ernie4_5_moe",
]
LENGTHS = (3, 40, 17, 5, 29)


class Oracle:
    """Notes the routes of every token of every sequence by its position, so that what is computed again counts once."""

    def __init__(self, llm):
        self.engine = llm.llm_engine.engine
        self.executor, self.routes, self.tags = self.engine.executor, {}, {}
        self._plain = self.executor.execute
        self.executor.execute = self.execute

    def execute(self, plan):
        result = self._plain(plan)
        row = 0
        for item in plan.advance:
            request = self.engine.scheduler.sequence(item.seq_id).request
            for position in range(item.start, item.start + item.num_tokens):
                key = item.seq_id, position
                self.tags[key] = request.routing.tags if request.routing is not None else []
                self.routes[key] = [
                    (tap, ids[row].tolist())
                    for tap, ids, _ in self.executor.model.expert_stats.of_step(plan.num_tokens)
                ]
                row += 1
        return result

    def counts(self, tag=None):
        stats = self.executor.model.expert_stats
        total = {tap.row: [0] * tap.num_experts for tap in stats.taps}
        for key, routes in self.routes.items():
            for tap, ids in routes if tag is None or tag in self.tags[key] else ():
                for expert in ids:
                    if expert >= 0:
                        total[tap.row][expert] += 1
        return [total[tap.row] for tap in stats.taps]


def engine(path, **options):
    return LLM(path, skip_tokenizer_init=True, threads=1, moe_backend="cpu", **options)


def tokens(llm, **arguments):
    return [layer["tokens"] for layer in llm.llm_engine.ask("experts", **arguments)["layers"]]


def params(*tags, n=1, max_tokens=24):
    return SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=1, n=n, ignore_eos=True, routing={"tags": tags})


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_counts_once(tiny_model, family, caching):
    """Chunks of a small budget, siblings, prompts that begin alike, and too few blocks for all at once."""
    llm = engine(
        tiny_model(family),
        max_num_batched_tokens=16,
        max_model_len=96,
        max_num_seqs=4,
        kv_cache_memory=1 << 30,
        enable_prefix_caching=caching,
    )
    scheduler = llm.llm_engine.engine.scheduler
    held = scheduler.kv.pool.allocate(scheduler.kv.pool.num_free - 9)  # nine blocks of 16 tokens are left
    oracle = Oracle(llm)
    prompts = [list(range(1, 1 + n)) for n in LENGTHS] * 2
    wanted = [params(*tags, n=n) for tags, n in ((("a",), 1), ((), 2), (("a", "b"), 1), ((), 1), (("b",), 2))] * 2
    llm.generate([{"prompt_token_ids": p} for p in prompts], wanted, use_tqdm=False)
    stats = scheduler.stats
    assert stats.preemptions_total > 0 and (stats.prefix_hits_total > 0) == caching
    assert tokens(llm) == oracle.counts()
    assert tokens(llm, tag="a") == oracle.counts("a") and tokens(llm, tag="b") == oracle.counts("b")
    again = llm.llm_engine.ask("experts")["totals"]["recomputed_tokens"]
    assert again == stats.computed_tokens_total - len(oracle.routes) > 0
    scheduler.kv.pool.release(held)


def counted_in(outputs, shape):
    """What returned routes add up to, from the first token that was not cached on: `[routers][experts]`."""
    total = [[0] * experts for experts in shape]
    for output, num_cached in outputs:
        for of_token in output.outputs[0].routed_experts.ids[num_cached:].tolist():
            for row, ids in zip(total, of_token, strict=True):
                for expert in ids:
                    if expert >= 0:
                        row[expert] += 1
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_returned_routes_add_up_to_the_counts(tiny_model, family):
    """Half of the requests find prefixes cached and return no routes; an engine that computes all tells those."""
    path = tiny_model(family)
    prompts = [list(range(1, 1 + n)) for n in LENGTHS] * 2
    routed = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, return_routed_experts=True)
    plain = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    alone = engine(path, enable_prefix_caching=False, max_model_len=96).generate(prompts, routed, use_tqdm=False)

    llm = engine(path, max_num_batched_tokens=16, max_model_len=96, max_num_seqs=4)
    scheduler = llm.llm_engine.engine.scheduler
    scheduler.kv.pool.allocate(scheduler.kv.pool.num_free - 9)
    outputs = llm.generate(prompts, [routed, plain] * (len(prompts) // 2), use_tqdm=False)
    assert scheduler.stats.preemptions_total > 0 and sum(o.num_cached_tokens for o in outputs) > 0
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in alone]
    told = [output if output.outputs[0].routed_experts else twin for output, twin in zip(outputs, alone, strict=True)]
    shape = [layer["num_experts"] for layer in llm.llm_engine.ask("experts")["layers"]]
    assert tokens(llm) == counted_in(zip(told, (o.num_cached_tokens for o in outputs), strict=True), shape)


@pytest.mark.parametrize("family", ["afmoe", "jamba"])
def test_transformers_own_code(tiny_model, family):
    llm = engine(tiny_model(family), model_impl="transformers", max_model_len=96, max_num_seqs=2)
    oracle = Oracle(llm)
    plain = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm.generate([list(range(1, 1 + n)) for n in LENGTHS], plain, use_tqdm=False)
    assert tokens(llm) == oracle.counts() and sum(map(sum, tokens(llm))) > 0


def test_figures_of_a_window(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    llm.generate([[1, 2, 3]], params("x", max_tokens=4), use_tqdm=False)
    found = llm.llm_engine.ask("experts", window="1m", tag="x")
    assert found["window"] == "1m" and found["tags"] == ["x"] and 0 < found["seconds"] < 60
    for layer in found["layers"]:
        counts = layer["tokens"]
        assert sum(counts) == 6 * layer["top_k"] and len(counts) == layer["num_experts"]
        assert layer["utilization"] == sum(n > 0 for n in counts) / len(counts)
        assert layer["imbalance"] == max(counts) / (sum(counts) / len(counts))
        assert layer["dead"] == [e for e, n in enumerate(counts) if n == 0]
    nobody = llm.llm_engine.ask("experts", tag="never seen")
    assert nobody["totals"]["tokens"] == 0 and nobody["totals"]["imbalance"] is None
    with pytest.raises(RequestError, match="window '1d'.*1m, 1h, start") as caught:
        llm.llm_engine.ask("experts", window="1d")
    assert caught.value.param == "window"


def test_of_many_tags_a_few_are_told_apart(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    prompts = [[1 + i] for i in range(MOST_TAGS + 3)]
    llm.generate(prompts, [params(f"tag {i}", max_tokens=1) for i in range(len(prompts))], use_tqdm=False)
    found = llm.llm_engine.ask("experts")
    assert len(found["tags"]) == MOST_TAGS + 1 and OTHER_TAGS in found["tags"]
    of_tags = [llm.llm_engine.ask("experts", tag=tag)["totals"]["tokens"] for tag in found["tags"]]
    assert sum(of_tags) == found["totals"]["tokens"]


def test_a_model_without_experts_has_none(tiny_model):
    llm = engine(tiny_model("llama"))
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2), use_tqdm=False)
    assert llm.llm_engine.ask("experts") is None
    assert llm.llm_engine.engine.summary().layers == []


def test_fragmentation(tiny_model):
    llm = engine(tiny_model("qwen3_moe"), quantization="w8a16", quantization_group_size=32)
    inner = llm.llm_engine
    assert inner.engine.summary().kv_fragmentation is None
    inner.add_request("r", list(range(1, 20)), SamplingParams(max_tokens=8, ignore_eos=True))
    inner.step()  # 19 tokens in two blocks of 16
    assert inner.engine.summary().kv_fragmentation == (32 - 19) / 32
    summary = inner.engine.summary()
    pages = [layer.mlp.experts.packed for layer in inner.engine.executor.model.layers]
    filled = sum(matrix.nbytes for page in pages for matrix in page.gate_up + page.down)
    assert summary.expert_bytes % 4096 == 0
    assert summary.expert_fragmentation == (summary.expert_bytes - filled) / summary.expert_bytes > 0


def test_counting_can_be_left_out_to_measure_what_it_costs(tiny_model, monkeypatch):
    monkeypatch.setattr(ExpertStats, "enabled", False)
    llm = engine(tiny_model("qwen3_moe"))
    llm.generate([[1, 2, 3]], params("x", max_tokens=4), use_tqdm=False)
    stats = llm.llm_engine.engine.executor.model.expert_stats
    assert not stats.counts.any() and not any(stats.routes)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compute_efficiency(tiny_model, backend):
    """Rows routed over rows of whole blocks, step by step and expert by expert; what is replayed counts as well."""
    llm = LLM(tiny_model("qwen3_moe"), skip_tokenizer_init=True, threads=1, moe_backend=backend, moe_block_size=4)
    engine = llm.llm_engine.engine
    stats, plain, routed, computed = engine.executor.model.expert_stats, engine.executor.execute, 0, 0

    def execute(plan):
        nonlocal routed, computed
        before = stats.counts.clone()
        result = plain(plan)
        counts = [n for n in (stats.counts - before).flatten().tolist() if n]
        routed += sum(counts)
        computed += sum(-(-n // 4) * 4 if backend == "cpu" else n for n in counts)
        return result

    engine.executor.execute = execute
    assert llm.llm_engine.ask("experts")["totals"]["compute_efficiency"] is None
    llm.generate([list(range(1, 1 + n)) for n in LENGTHS], params(max_tokens=8), use_tqdm=False)
    found = llm.llm_engine.ask("experts", window="1m")["totals"]["compute_efficiency"]
    assert found == engine.summary().compute_efficiency == routed / computed
    assert (found == 1) == (backend == "reference")
