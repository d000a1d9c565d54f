"""Every family against transformers: the same logits in fp32, in batches and in chunks, on tiny random models.

Every case runs on the best backend that serves here, a sample on the reference backend and on each instruction set.
The measure is max |difference| over max |reference|, as everywhere; 1e-4 is what the project promises.
Unwritten cache slots hold NaN throughout, so that anything read by mistake shows.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.driver import Driver, load, relative_difference
from tests.parity.record import record
from tests.tiny_models import FAMILIES, make_tiny, tiny_reference

TOLERANCE = 1e-4
LENGTHS = (23, 7, 1, 40)
CHUNKS = {"whole": [100], "chunked": [5, 9, 1], "one by one": [1]}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
CASES = {
    **{family: (family, {}) for family in FAMILIES},
    **{f"{family} tied": (family, {"tie": True}) for family in FAMILIES},
    **{f"{family} mha": (family, {"num_key_value_heads": 4}) for family in FAMILIES},
    **{f"{family} 8/1 heads": (family, {"num_attention_heads": 8, "num_key_value_heads": 1}) for family in FAMILIES},
    "mixtral window": ("mixtral", {"sliding_window": 6}),
    "mixtral window of one": ("mixtral", {"sliding_window": 1}),
    "mixtral head_dim": ("mixtral", {"head_dim": 24}),
    "mixtral top-1": ("mixtral", {"num_experts_per_tok": 1}),
    "qwen3_moe window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5}),
    "qwen3_moe window unused": ("qwen3_moe", {"use_sliding_window": False, "sliding_window": 5}),
    "qwen3_moe dense layers": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe sparse step": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe not renormalised": ("qwen3_moe", {"norm_topk_prob": False}),
    "qwen3_moe biases": ("qwen3_moe", {"attention_bias": True}),
    "olmoe renormalised": ("olmoe", {"norm_topk_prob": True}),
    "olmoe clipped": ("olmoe", {"clip_qkv": 0.5}),
    "olmoe biases": ("olmoe", {"attention_bias": True}),
    "granitemoe biases": ("granitemoe", {"attention_bias": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 32}),
    "llama rope llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama rope yarn": ("llama", {"rope_parameters": YARN}),
    "llama rope yarn, all options": (
        "llama",
        {"rope_parameters": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "qwen3_moe rope yarn": ("qwen3_moe", {"rope_parameters": YARN}),
}


def random_streams(lengths=LENGTHS):
    """Token streams by sequence id."""
    return {
        i: torch.randint(0, 128, (n,), generator=torch.Generator().manual_seed(i)).tolist()
        for i, n in enumerate(lengths)
    }


def reference_logits(model, streams):
    """transformers' logits of each stream, computed alone and whole."""
    with torch.no_grad():
        return {i: model(torch.tensor([tokens]), use_cache=False).logits[0] for i, tokens in streams.items()}


SAMPLE = ("mixtral window", "qwen3_moe dense layers", "olmoe clipped", "granitemoe biases", "llama rope yarn")


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    check_logits(case, tmp_path)


@pytest.mark.parametrize("case", SAMPLE)
def test_logits_of_the_reference_backend(case, tmp_path):
    check_logits(case, tmp_path, backend="reference")


@pytest.mark.parametrize("case", SAMPLE)
@pytest.mark.usefixtures("isa")
def test_logits_on_each_instruction_set(case, tmp_path):
    check_logits(case, tmp_path, backend="cpu")


def check_logits(case, tmp_path, backend="auto"):
    """The model's logits in batches and in chunks are those of transformers."""
    family, options = CASES[case]
    reference = tiny_reference(family, **options)
    reference.save_pretrained(tmp_path)
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(tmp_path, backend=backend)
    assert model.spec.num_parameters == sum(p.numel() for p in reference.parameters())
    compare(case, reference, model, streams, expected)


def compare(case, reference, model, streams, expected, name=None):
    """Every way of computing the streams comes to the expected logits; the largest difference is put on record.

    Args:
        name: of the architecture, where it is not that of the reference's class.
    """
    differences = {}
    for way, chunks in CHUNKS.items():
        logits = Driver(model).run(streams, chunks)
        differences[way] = max(relative_difference(logits[i], expected[i]) for i in streams)
        assert differences[way] < TOLERANCE, f"{case}, {way}: {differences[way]:.2e}"
    record(name or type(reference).__name__, case, max(differences.values()), model.spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(family, tmp_path):
    reference = tiny_reference(family, seed=3)
    reference.save_pretrained(tmp_path)
    prompt = random_streams((9,))[0]
    with torch.no_grad():
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0].tolist()
    driver = Driver(load(tmp_path))
    tokens = [*prompt, int(driver.step({0: prompt})[0][-1].argmax())]
    while len(tokens) < len(expected):
        tokens.append(int(driver.step({0: tokens[-1:]})[0][-1].argmax()))
    assert tokens == expected


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "granitemoe"])
def test_fused_spelling(family, tmp_path):
    """The names of transformers' own parameters, all experts of a layer stacked, load as well as the hub's."""
    reference = tiny_reference(family)
    reference.save_pretrained(tmp_path)
    hub_names = load_file(tmp_path / "model.safetensors").keys()
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    assert state.keys() != hub_names
    save_file(state, tmp_path / "model.safetensors")
    streams = random_streams((12,))
    logits = Driver(load(tmp_path)).run(streams, [100])
    assert relative_difference(logits[0], reference_logits(reference, streams)[0]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_bin_shards(family, tmp_path):
    """The same model from safetensors in one file, in shards, and from torch's own files."""
    make_tiny(family, tmp_path / "one")
    make_tiny(family, tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    binary = tmp_path / "bin"
    binary.mkdir()
    (binary / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), binary / "pytorch_model.bin")
    streams = random_streams((12,))
    one, *others = (Driver(load(tmp_path / kind)).run(streams, [5])[0] for kind in ("one", "shards", "bin"))
    assert all(torch.equal(one, other) for other in others)


def test_rope_spellings_of_transformers_4(tmp_path):
    from moesaic.models.load import read_spec

    make_tiny("llama", tmp_path, rope_parameters=LLAMA3)
    spec = read_spec(tmp_path)[1]
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    for key in ("type", "rope_type"):
        scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")}
        old = {**config, "rope_theta": 1e4, "rope_scaling": {**scaling, key: "llama3"}}
        (tmp_path / "config.json").write_text(json.dumps(old))
        assert read_spec(tmp_path)[1] == spec


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_fp32(dtype, tmp_path):
    make_tiny("qwen3_moe", tmp_path)
    streams = random_streams()
    full = Driver(load(tmp_path)).run(streams, [5, 1])
    half = Driver(load(tmp_path, dtype=dtype)).run(streams, [5, 1])
    assert all(logits.dtype == torch.float32 for logits in half.values())
    # Routing may flip where two experts score alike, so the bulk is compared, not the worst token.
    errors = torch.cat([(half[i] - full[i]).abs().mean(-1) / full[i].abs().max() for i in streams])
    assert errors.median() < 0.02
