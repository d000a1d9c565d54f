"""A hand-written model whose experts keep keys and values of their own, through the engine, against a dense oracle that
computes all tokens at once and keeps nothing."""

import json

import pytest
import torch
from torch import nn

from moesaic import LLM, SamplingParams
from moesaic.core.request import EngineRequest
from moesaic.library import (
    Attention,
    MoEPagedAttention,
    ParallelLMHead,
    QKVParallelLinear,
    RMSNorm,
    Router,
    VocabParallelEmbedding,
)
from moesaic.models.registry import ModelRegistry
from moesaic.models.spec import RopeSpec
from tests.out_of_tree import registrations  # noqa: F401

VOCAB, HIDDEN, HEADS, DIM, EXPERTS, LENGTH = 60, 16, 2, 8, 4, 64
LAYERS = ((2, 2), (2, 1), (1, 2), (2, 4))  # KV heads, experts of a token: two pools, and one layer in which all attend
ROPE = RopeSpec(theta=100.0)
EPS = 1e-6
PROMPTS = [[(7 * i + 3 * n) % VOCAB for i in range(n)] for n in (3, 29, 17, 5)]
NEW = 20


def layers_of(every_expert):
    """As above, or with all experts for each token."""
    return [(kv, EXPERTS if every_expert else k) for kv, k in LAYERS]


class Mixed(nn.Module):
    """Plain attention, then layers of experts that attend, each behind a norm and added to what it was given."""

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        layers = layers_of(config.get("every_expert", False))
        self.embed = VocabParallelEmbedding(VOCAB, HIDDEN, prefix="embed")
        self.qkv = QKVParallelLinear(HIDDEN, DIM, HEADS, prefix="qkv")
        self.plain = Attention(HEADS, DIM, DIM**-0.5, prefix="plain")
        self.norms = nn.ModuleList(RMSNorm(HIDDEN, EPS) for _ in range(len(LAYERS) + 2))
        self.gates = nn.ModuleList(
            Router(HIDDEN, EXPERTS, top_k=k, renormalize=True, prefix=f"layers.{i}.gate")
            for i, (_, k) in enumerate(layers)
        )
        self.attentions = nn.ModuleList(
            MoEPagedAttention(HIDDEN, EXPERTS, HEADS, DIM, kv, top_k=k, rope=ROPE, prefix=f"layers.{i}.attention")
            for i, (kv, k) in enumerate(layers)
        )
        self.head = ParallelLMHead(VOCAB, HIDDEN, prefix="head")

    def get_input_embeddings(self, input_ids):
        return self.embed(input_ids)

    def forward(self, input_ids, positions):
        hidden = self.embed(input_ids)
        hidden = hidden + self.plain(*self.qkv(self.norms[0](hidden)).chunk(3, -1))
        for norm, gate, attention in zip(self.norms[1:-1], self.gates, self.attentions, strict=True):
            normed = norm(hidden)
            routing = gate(normed)
            hidden = hidden + attention(normed, routing.ids, routing.weights)
        return self.norms[-1](hidden)

    def compute_logits(self, hidden_states):
        return self.head(hidden_states)

    def load_weights(self, weights):
        params = dict(self.named_parameters())
        for name, weight in weights:
            params[name].weight_loader(params[name], weight)


def draw():
    """Weights by the class's names, wide enough that all of them matter."""
    shapes = {"embed.weight": (VOCAB, HIDDEN), "qkv.weight": (3 * HEADS * DIM, HIDDEN), "head.weight": (VOCAB, HIDDEN)}
    shapes |= {f"norms.{i}.weight": (HIDDEN,) for i in range(len(LAYERS) + 2)}
    for i, (kv, _) in enumerate(LAYERS):
        shapes[f"gates.{i}.weight"] = EXPERTS, HIDDEN
        for e in range(EXPERTS):
            shapes[f"attentions.{i}.experts.{e}.qkv.weight"] = (HEADS + 2 * kv) * DIM, HIDDEN
            shapes[f"attentions.{i}.experts.{e}.o.weight"] = HIDDEN, HEADS * DIM
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.5 + (1.0 if name.startswith("norms") else 0.0)
        for name, shape in shapes.items()
    }


WEIGHTS = draw()


@pytest.fixture
def checkpoint(tmp_path, registrations):  # noqa: F811
    """A function that saves the model, with further keys of its config; returns the folder."""
    from safetensors.torch import save_file

    def save(**more):
        config = {"architectures": ["Mixed"], "vocab_size": VOCAB, "max_position_embeddings": LENGTH, **more}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(WEIGHTS, tmp_path / "model.safetensors")
        ModelRegistry.register_model("Mixed", Mixed)
        return str(tmp_path)

    return save


def engine_of(folder, **options):
    options = {"block_size": 4, "max_num_batched_tokens": 64, "max_num_seqs": 4, "threads": 1, **options}
    return LLM(folder, skip_tokenizer_init=True, **options)


def norm(x, i):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * WEIGHTS[f"norms.{i}.weight"]


def rotate(x):
    """`[T, heads, D]`, the first half of each head with the second."""
    angles = torch.arange(len(x))[:, None] * ROPE.theta ** -(torch.arange(0, DIM, 2) / DIM)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, member):
    """Of each token to those members that are not after it, `[T, heads * D]`; rows of members alone have a meaning."""
    k, v = (x.repeat_interleave(HEADS // x.shape[1], 1) for x in (k, v))
    seen = torch.ones(len(q), len(q), dtype=torch.bool).tril() & member
    scores = torch.einsum("thd,shd->hts", q, k) * DIM**-0.5
    return torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -1e30).softmax(-1), v).flatten(1)


def logits_of(tokens, every_expert=False):
    """The definition."""
    hidden = WEIGHTS["embed.weight"][tokens]
    every = torch.ones(len(tokens), dtype=torch.bool)
    parts = (norm(hidden, 0) @ WEIGHTS["qkv.weight"].T).view(-1, 3 * HEADS, DIM).chunk(3, 1)
    hidden = hidden + attend(*parts, every)
    for i, (kv, k) in enumerate(layers_of(every_expert)):
        x = norm(hidden, i + 1)
        weights, ids = (x @ WEIGHTS[f"gates.{i}.weight"].T).softmax(-1).topk(k)
        weights = weights / weights.sum(-1, keepdim=True)
        for e in range(EXPERTS):
            own = f"attentions.{i}.experts.{e}"
            query, key, value = (
                (x @ WEIGHTS[f"{own}.qkv.weight"].T).view(-1, HEADS + 2 * kv, DIM).split([HEADS, kv, kv], 1)
            )
            mixed = attend(rotate(query), rotate(key), value, (ids == e).any(1))
            hidden = hidden + (weights * (ids == e)).sum(1, keepdim=True) * (mixed @ WEIGHTS[f"{own}.o.weight"].T)
    return norm(hidden, len(LAYERS) + 1) @ WEIGHTS["head.weight"].T


def assert_greedy(prompts, outputs, every_expert=False):
    """Each output is the one that the definition gives: every token of it is the best after all before it."""
    for prompt, output in zip(prompts, outputs, strict=True):
        best = logits_of(prompt + output, every_expert)[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert output == best and len(set(output)) > 3


def generate(llm, prompts, n=1):
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, n=n)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [[out.token_ids for out in output.outputs] for output in outputs]


def pools(llm):
    """The blocks of each pool."""
    found = {id(layer.pages): layer.pages.blocks for layer in llm.llm_engine.engine.executor.model.model.attentions}
    return list(found.values())


def assert_idle(llm):
    """Nothing is left of any sequence."""
    blocks = pools(llm)
    assert len(blocks) == 2
    for pool in blocks:
        assert pool.num_used == 0 and sorted(pool.allocate(pool.num_free)) == list(range(pool.num_blocks))
        pool.release(list(range(pool.num_blocks)))
    layers = llm.llm_engine.engine.executor.model.model.attentions
    assert not any(layer.tables.blocks() or layer.tables.computed for layer in layers)


def test_alone_together_and_chunked(checkpoint):
    llm = engine_of(checkpoint())
    alone = [generate(llm, [prompt])[0][0] for prompt in PROMPTS]
    assert_greedy(PROMPTS, alone)
    assert [out for [out] in generate(llm, PROMPTS)] == alone
    chunked = engine_of(checkpoint(), max_num_batched_tokens=5)
    assert [out for [out] in generate(chunked, PROMPTS)] == alone
    for each in (llm, chunked):
        assert each.llm_engine.engine.executor.runner.recorded is None
        assert_idle(each)


def test_the_reference_backend(checkpoint):
    llm = engine_of(checkpoint(), moe_backend="reference")
    assert_greedy(PROMPTS, [out for [out] in generate(llm, PROMPTS)])


def test_preempted(checkpoint):
    """Too few blocks for all at once, and each pool as full as it ever gets."""
    per_block = engine_of(checkpoint()).llm_engine.engine.executor.kv
    memory = 24 * per_block.bytes_per_block + 4 * per_block.bytes_per_slot
    llm = engine_of(checkpoint(), kv_cache_memory=memory, max_num_batched_tokens=16)
    engine = llm.llm_engine.engine
    assert engine.executor.kv.total_bytes <= memory
    assert_greedy(PROMPTS, [out for [out] in generate(llm, PROMPTS)])
    assert engine.stats.preemptions_total > 0, engine.executor.kv
    assert_idle(llm)


@pytest.mark.parametrize("every_expert", [False, True])
def test_nothing_is_shared(checkpoint, every_expert):
    """Neither with an earlier prompt, nor among the sequences of one."""
    llm = engine_of(checkpoint(every_expert=every_expert), enable_prefix_caching=True)
    for _ in range(2):
        [outputs] = generate(llm, PROMPTS[1:2], n=3)
        assert_greedy(PROMPTS[1:2] * 3, outputs, every_expert)
    engine = llm.llm_engine.engine
    assert engine.stats.prefix_hits_total == 0 and not engine.scheduler.kv.cache.enabled
    assert_idle(llm)


def request(name, prompt):
    params = SamplingParams(max_tokens=NEW, temperature=0, n=2)
    return EngineRequest(
        request_id=name,
        prompt_token_ids=prompt,
        params=params,
        max_tokens=NEW,
        stop_token_ids=[],
        eos_token_ids=[],
        seed=0,
    )


def test_aborted(checkpoint):
    llm = engine_of(checkpoint())
    engine = llm.llm_engine.engine
    for name in ("a", "b"):
        engine.add(request(name, PROMPTS[2]))
    for _ in range(3):
        engine.step()
    used = [pool.num_used for pool in pools(llm)]
    assert all(used)
    engine.abort("a")
    engine.step()
    assert all(pool.num_used < before for pool, before in zip(pools(llm), used, strict=True))
    engine.abort("b")
    assert_idle(llm)


def test_what_is_set_aside_is_what_one_could_take(checkpoint):
    llm = engine_of(checkpoint())
    kv = llm.llm_engine.engine.executor.kv
    generate(llm, PROMPTS[:1])
    sizes = sorted(pool.num_blocks for pool in pools(llm))
    # of one KV head: 2 of 4 experts; of two: 2 and 1, and all four, who need no spare blocks
    assert sizes == [2 * kv.num_blocks + 3 * kv.num_slots, 7 * kv.num_blocks + 6 * kv.num_slots]
    specs = llm.llm_engine.engine.executor.model.cache_specs()
    held = sum(spec.kv.bytes_per_block(4) * n for spec, n in zip(specs[1:], sizes[::-1], strict=True))
    assert kv.total_bytes == held + specs[0].bytes_per_block(4) * kv.num_blocks


def test_more_experts_than_were_announced(checkpoint):
    llm = engine_of(checkpoint())
    layers = llm.llm_engine.engine.executor.model.model.attentions
    layers[0].top_k = 1
    engine = llm.llm_engine.engine
    engine.add(request("a", PROMPTS[0]))
    updates = engine.step()
    assert {update.error for update in updates} == {
        "the engine failed on this batch: ValueError: layers.0.attention: a token has 2 experts, and top_k is 1"
    }
    assert_idle(llm)


def test_what_is_known_before_it_is_built(checkpoint):
    from moesaic.models.load import read_spec

    _, spec = read_spec(checkpoint())
    assert spec.num_parameters == sum(weight.numel() for weight in WEIGHTS.values())
    asleep = sum(
        weight.numel() * (1 - LAYERS[int(name.split(".")[1])][1] / EXPERTS)
        for name, weight in WEIGHTS.items()
        if ".experts." in name
    )
    assert spec.num_active_parameters == spec.num_parameters - asleep
    assert not spec.shares_prompts
