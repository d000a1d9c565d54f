"""A spec whose experts attend with queries and keys of their own, through the engine, against a dense oracle that
computes all tokens at once and keeps nothing."""

import json

import pytest
import torch
from safetensors.torch import save_file

from moesaic import LLM, SamplingParams
from moesaic.models.load import read_spec

VOCAB, HIDDEN, HEADS, DIM, EXPERTS, INNER, LENGTH = 60, 16, 2, 8, 4, 24, 64
THETA, EPS = 100.0, 1e-6
ARCH = """
from moesaic.models.spec import *
from moesaic.weights.rules import rename

RULES = [rename("{any}", "{any}")]


def spec(c):
    c.ignore("architectures")
    experts = c.require(int, "num_experts")

    def router(k):
        return RouterSpec(top_k=k, renormalize=True)

    def owned(kv, k, owned, bias=False):
        return ExpertPagedAttentionSpec(
            num_experts=experts, router=router(k), num_heads=2, num_kv_heads=kv, head_dim=8, scale=8**-0.5,
            rope=RopeSpec(theta=100.0), owned=owned, qkv_bias=bias, output_bias=bias,
        )

    plain = AttentionSpec(num_heads=2, num_kv_heads=2, head_dim=8, scale=8**-0.5, rope=RopeSpec(theta=100.0))
    moe = MoESpec(num_experts=experts, intermediate_size=24, router=router(2))
    layers = (
        LayerSpec(attention=owned(2, 2, "qkvo"), ffn=DenseSpec(intermediate_size=24)),
        LayerSpec(attention=plain, ffn=moe),
        LayerSpec(attention=owned(1, 2, "qk"), ffn=None),
        LayerSpec(attention=owned(2, 1, "qk", True), ffn=moe),
        LayerSpec(attention=owned(2, experts, "qkvo", True), ffn=None),
    )
    return ModelSpec(
        vocab_size=c.require(int, "vocab_size"), hidden_size=16, max_position_embeddings=64, norm=NormSpec(eps=1e-6),
        tied_embeddings=True, layers=layers,
    )
"""
# (what experts own, KV heads, experts of a token, biases) of attention, or None for the plain one; and feed-forwards
LAYERS = [
    ("qkvo", 2, 2, False, "dense"),
    (None, 2, 0, False, "moe"),
    ("qk", 1, 2, False, None),
    ("qk", 2, 1, True, "moe"),
    ("qkvo", 2, EXPERTS, True, None),
]
PROMPTS = [[(7 * i + 3 * n) % VOCAB for i in range(n)] for n in (3, 29, 17, 5)]
NEW = 20


def shapes_of(owned, kv, bias, ffn):
    """Of a layer's tensors."""
    rows = {"q": HEADS * DIM, "k": kv * DIM, "v": kv * DIM, "o": HIDDEN}
    where = {part: ["attention"] for part in "qkvo"}
    shapes = {"attention_norm.weight": (HIDDEN,)}
    if owned is not None:
        where |= {part: [f"attention.experts.{e}" for e in range(EXPERTS)] for part in owned}
        shapes["attention.router.weight"] = EXPERTS, HIDDEN
    for part, owners in where.items():
        for owner in owners:
            shapes[f"{owner}.{part}.weight"] = rows[part], HEADS * DIM if part == "o" else HIDDEN
            if bias:
                shapes[f"{owner}.{part}.bias"] = (rows[part],)
    if ffn is not None:
        shapes["ffn_norm.weight"] = (HIDDEN,)
        for owner in [f"mlp.experts.{e}" for e in range(EXPERTS)] if ffn == "moe" else ["mlp"]:
            shapes |= {f"{owner}.gate.weight": (INNER, HIDDEN), f"{owner}.up.weight": (INNER, HIDDEN)}
            shapes[f"{owner}.down.weight"] = HIDDEN, INNER
    if ffn == "moe":
        shapes["mlp.router.weight"] = EXPERTS, HIDDEN
    return shapes


def draw():
    """Weights by their canonical names, wide enough that all of them matter."""
    shapes = {"embed.weight": (VOCAB, HIDDEN), "norm.weight": (HIDDEN,)}
    for i, (owned, kv, _, bias, ffn) in enumerate(LAYERS):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in shapes_of(owned, kv, bias, ffn).items()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.5 + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in shapes.items()
    }


WEIGHTS = draw()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder, and the file with its architecture."""
    folder = tmp_path_factory.mktemp("owned")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["MoEModel"], "vocab_size": VOCAB, "num_experts": EXPERTS})
    )
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "arch.py").write_text(ARCH)
    return str(folder), str(folder / "arch.py")


def engine_of(checkpoint, **options):
    folder, arch = checkpoint
    options = {"block_size": 4, "max_num_batched_tokens": 64, "max_num_seqs": 4, "threads": 1, **options}
    return LLM(folder, arch=arch, skip_tokenizer_init=True, **options)


def norm(x, name):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * WEIGHTS[f"{name}.weight"]


def project(x, name):
    return x @ WEIGHTS[f"{name}.weight"].T + WEIGHTS.get(f"{name}.bias", 0.0)


def rotate(x):
    """`[T, heads, D]`, the first half of each head with the second."""
    angles = torch.arange(len(x))[:, None] * THETA ** -(torch.arange(0, DIM, 2) / DIM)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(x, kv, names, member):
    """What the heads give `[T, heads * D]`, among members alone; `names`: of q, k and v."""
    q, k, v = (project(x, name).view(len(x), -1, DIM) for name in names)
    k, v = (each.repeat_interleave(HEADS // kv, 1) for each in (rotate(k), v))
    seen = torch.ones(len(x), len(x), dtype=torch.bool).tril() & member
    scores = torch.einsum("thd,shd->hts", rotate(q), k) * DIM**-0.5
    return torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -1e30).softmax(-1), v).flatten(1)


def route(x, name, k):
    weights, ids = project(x, name).softmax(-1).topk(k)
    return weights / weights.sum(-1, keepdim=True), ids


def attention_of(x, name, owned, kv, k):
    """One layer's."""
    if owned is None:
        every = torch.ones(len(x), dtype=torch.bool)
        return project(attend(x, kv, [f"{name}.{part}" for part in "qkv"], every), f"{name}.o")
    weights, ids = route(x, f"{name}.router", k)
    total = 0.0
    for e in range(EXPERTS):
        own = f"{name}.experts.{e}"
        names = [f"{own if part in owned else name}.{part}" for part in "qkv"]
        given = attend(x, kv, names, (ids == e).any(1))
        given = project(given, f"{own}.o") if "o" in owned else given
        total = total + (weights * (ids == e)).sum(1, keepdim=True) * given
    return total if "o" in owned else project(total, f"{name}.o")


def feed_forward(x, name):
    return project(torch.nn.functional.silu(project(x, f"{name}.gate")) * project(x, f"{name}.up"), f"{name}.down")


def experts_of(x, name):
    weights, ids = route(x, f"{name}.router", 2)
    shares = [(weights * (ids == e)).sum(1, keepdim=True) for e in range(EXPERTS)]
    return sum(share * feed_forward(x, f"{name}.experts.{e}") for e, share in enumerate(shares))


def logits_of(tokens):
    """The definition."""
    hidden = WEIGHTS["embed.weight"][tokens]
    for i, (owned, kv, k, _, ffn) in enumerate(LAYERS):
        name = f"layers.{i}"
        hidden = hidden + attention_of(norm(hidden, f"{name}.attention_norm"), f"{name}.attention", owned, kv, k)
        if ffn is not None:
            part = experts_of if ffn == "moe" else feed_forward
            hidden = hidden + part(norm(hidden, f"{name}.ffn_norm"), f"{name}.mlp")
    return norm(hidden, "norm") @ WEIGHTS["embed.weight"].T


def generate(llm, prompts=PROMPTS, **params):
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, **params)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [[out.token_ids for out in output.outputs] for output in outputs]


def assert_greedy(outputs, prompts=PROMPTS):
    """Every token is the best, after all before it."""
    for prompt, each in zip(prompts, outputs, strict=True):
        for output in each:
            assert output == logits_of(prompt + output)[len(prompt) - 1 : -1].argmax(-1).tolist()
            assert len(set(output)) > 3


def pools_of(llm):
    """The blocks of each pool."""
    model = llm.llm_engine.engine.executor.model
    assert not any(layer.tables.blocks() or layer.tables.computed for layer in model.pools.layers)
    return list({id(layer.pages): layer.pages.blocks for layer in model.pools.layers}.values())


def test_alone_together_and_chunked(checkpoint):
    llm = engine_of(checkpoint)
    alone = [generate(llm, [prompt])[0] for prompt in PROMPTS]
    assert_greedy(alone)
    assert generate(llm) == alone
    chunked = engine_of(checkpoint, max_num_batched_tokens=5)
    assert generate(chunked) == alone
    for each in (llm, chunked):
        assert each.llm_engine.engine.executor.runner.recorded is None
        assert [pool.num_used for pool in pools_of(each)] == [0, 0]


def test_the_reference_backend(checkpoint):
    assert_greedy(generate(engine_of(checkpoint, moe_backend="reference")))


def test_preempted(checkpoint):
    """Too few blocks for all at once, and each pool as full as it ever gets."""
    kv = engine_of(checkpoint).llm_engine.engine.executor.kv
    memory = 24 * kv.bytes_per_block + 4 * kv.bytes_per_slot
    llm = engine_of(checkpoint, kv_cache_memory=memory, max_num_batched_tokens=16)
    engine = llm.llm_engine.engine
    assert engine.executor.kv.total_bytes <= memory
    assert_greedy(generate(llm))
    assert engine.stats.preemptions_total > 0
    assert [pool.num_used for pool in pools_of(llm)] == [0, 0]


def test_nothing_is_shared(checkpoint):
    """Neither with an earlier prompt, nor among the sequences of one."""
    llm = engine_of(checkpoint, enable_prefix_caching=True)
    for _ in range(2):
        assert_greedy(generate(llm, PROMPTS[1:2], n=3), PROMPTS[1:2])
    engine = llm.llm_engine.engine
    assert engine.stats.prefix_hits_total == 0 and not engine.scheduler.kv.cache.enabled


def test_log_probabilities(checkpoint):
    """Not the best tokens alone: each prompt token's own number."""
    llm = engine_of(checkpoint)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    [output] = llm.generate([{"prompt_token_ids": PROMPTS[1]}], params, use_tqdm=False)
    expected = logits_of(PROMPTS[1]).log_softmax(-1)
    for place in range(1, len(PROMPTS[1])):
        token = PROMPTS[1][place]
        assert output.prompt_logprobs[place][token].logprob == pytest.approx(
            float(expected[place - 1, token]), abs=2e-3
        )


def test_quantised_experts_stay_close(checkpoint):
    """Formats are found by the experts' names: 8 bits move a prompt's log-probabilities a little, and do move them."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    exact, coarse = (
        engine_of(checkpoint, **options).generate([{"prompt_token_ids": PROMPTS[1]}], params, use_tqdm=False)[0]
        for options in ({}, {"quantization_config": "layers.*.attention.experts=w8a16:32"})
    )
    moved = [
        abs(a[token].logprob - b[token].logprob)
        for token, a, b in list(zip(PROMPTS[1], exact.prompt_logprobs, coarse.prompt_logprobs, strict=True))[1:]
    ]
    assert max(moved) > 1e-4 and sorted(moved)[len(moved) // 2] < 0.3


def test_what_is_known_before_it_is_built(checkpoint):
    _, spec = read_spec(*checkpoint)
    assert spec.num_parameters == sum(weight.numel() for weight in WEIGHTS.values())
    asleep = 0.0
    for name, weight in WEIGHTS.items():
        if ".experts." in name:
            _, _, k, _, _ = LAYERS[int(name.split(".")[1])]
            asleep += weight.numel() * (1 - (2 if ".mlp." in name else k) / EXPERTS)
    assert spec.num_active_parameters == spec.num_parameters - asleep
    assert not spec.shares_prompts
