"""Where numbers stop being finite is named: layer, expert, operation, and why."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic import LLM, SamplingParams
from moesaic.core.errors import CheckpointError
from moesaic.weights import loader
from moesaic.weights.report import LoadReport
from tests.parity.test_expert_paged_attention import ARCH
from tests.parity.test_expert_paged_attention import WEIGHTS as OWNED

PROMPTS = [[(5 * i + 3 * n) % 128 for i in range(n)] for n in (40, 9, 23)]
EXPERT = "model.layers.1.mlp.experts.{}.{}_proj.weight"
ATTENTION = "model.layers.{}.self_attn.{}_proj.weight"


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """A function: what to do to the tensors of a tiny checkpoint; gives its folder."""

    def make(change, family="qwen3_moe", **overrides):
        folder = tmp_path / "damaged"
        shutil.copytree(tiny_model(family, **overrides), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return make


def engine_of(folder, **options):
    options = {"skip_tokenizer_init": True, "threads": 1, "max_num_seqs": 4, "diagnose": True, **options}
    return LLM(folder, **options)


def generate(llm, prompts=PROMPTS, max_tokens=8):
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def findings_of(llm):
    return llm.llm_engine.engine.executor.runner.watch.findings


def the_finding(llm, prompts=PROMPTS):
    """Of a model of which every prompt comes upon the same."""
    outputs = generate(llm, prompts)
    [finding] = findings_of(llm)
    for output in outputs:
        assert output.error.startswith(f"the model's logits are not finite: first {finding.kind} in {finding.place}")
    return finding


CASES = [("gate", {}), ("up", {"moe_backend": "reference"}), ("down", {}), ("down", {"quantization": "w8a16"})]


@pytest.mark.parametrize("part, options", CASES, ids=str)
def test_nan_in_one_expert(damaged, part, options):
    def change(tensors):
        tensors[EXPERT.format(5, part)][7, 3] = float("nan")

    llm = engine_of(damaged(change), **options)
    finding = the_finding(llm, PROMPTS[:1])
    assert (finding.layer, finding.expert, finding.op, finding.kind) == (1, 5, part, "NaN")
    assert "the weight has numbers that are not finite" in finding.cause and "get it" in finding.advice
    note = finding.weights[0]
    assert note.name == f"layers.1.mlp.experts.5.{part}.weight" and note.first[0] == 7
    if "quantization" not in options:  # where a number that is not finite spoils all that shares its scale
        assert note.first == (7, 3) and note.nonfinite == 1
    assert finding.router.probability_sum == pytest.approx(1, abs=1e-5)
    assert 5 in finding.router.experts and sum(finding.router.weights) == pytest.approx(1, abs=1e-5)
    assert len(finding.expert_norms) == 8 and finding.expert_norms[5] != finding.expert_norms[5]
    assert finding.usual_norm > 0 and 0 <= finding.position < len(PROMPTS[0])


def test_others_go_on(damaged, monkeypatch):
    """A sequence that never meets the expert has what it has without the damage; the place is told once."""

    def change(tensors):
        tensors[EXPERT.format(5, "down")][7, 3] = float("nan")
        tensors["model.layers.1.mlp.gate.weight"][5] = 0  # few go there
        tensors["model.layers.1.mlp.gate.weight"][5, 0] = 0.45

    folder = damaged(change)
    prompts = [[i] for i in range(40)]
    llm = engine_of(folder, max_num_seqs=40)
    with pytest.raises(CheckpointError, match="1 weight holds NaN or infinity"):
        engine_of(folder, diagnose=False)
    monkeypatch.setattr(loader, "report_of", lambda *_: LoadReport())  # as if loading had not seen it
    plain = engine_of(folder, max_num_seqs=40, diagnose=False)
    outputs, expected = generate(llm, prompts), generate(plain, prompts)
    failed = [output.error is not None for output in outputs]
    assert 0 < sum(failed) < len(prompts)
    for output, other in zip(outputs, expected, strict=True):
        assert output.outputs[0].token_ids == other.outputs[0].token_ids
        assert (output.error is None) == (other.error is None)
        assert output.error is None or "layer 1, expert 5, down" in output.error
        assert other.error is None or "--diagnose names the place" in other.error
    assert [finding.place for finding in findings_of(llm)] == ["layer 1, expert 5, down"]


def test_two_places_in_one_step(damaged):
    """Each sequence is told its own."""

    def change(tensors):
        tensors["model.embed_tokens.weight"][3] = float("inf")
        tensors[EXPERT.format(5, "up")][0, 0] = float("-inf")

    llm = engine_of(damaged(change))
    first, second = generate(llm, [[3], PROMPTS[0]], max_tokens=1)
    assert "first infinity in embed (embed): the weight has numbers that are not finite: 64" in first.error
    assert "in layer 1, expert 5, up (layers.1.mlp)" in second.error
    assert [finding.layer for finding in findings_of(llm)] == [None, 1]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_router_with_infinity(damaged, backend):
    def change(tensors):
        tensors["model.layers.2.mlp.gate.weight"][6, 1] = float("inf")

    llm = engine_of(damaged(change), moe_backend=backend)
    outputs = generate(llm)
    [finding] = findings_of(llm)
    assert any(output.error is not None and "layer 2, expert 6, router" in output.error for output in outputs)
    assert (finding.layer, finding.expert, finding.op) == (2, 6, "router")
    assert "its logit of expert 6" in finding.cause and finding.router.probability_sum != finding.router.probability_sum
    assert finding.weights[0].name == "layers.2.mlp.router.weight" and finding.weights[0].first == (6, 1)


def test_float16_ends(damaged):
    """An expert that is as large as bfloat16 lets it be, in float16."""

    def change(tensors):
        for expert in range(8):
            tensors[EXPERT.format(expert, "down")] *= 3e4

    folder = damaged(change)
    llm = engine_of(folder, dtype="float16", moe_backend="reference")
    assert all("float16 ends at 65504" in output.error for output in generate(llm))
    finding = findings_of(llm)[0]
    assert (finding.layer, finding.op, finding.kind) == (1, "down", "infinity") and finding.expert is not None
    assert "overflow: it gives" in finding.cause and "float16 ends at 65504" in finding.cause
    assert finding.exact > 65504 and "--dtype bfloat16 or float32" in finding.advice
    assert all(output.error is None for output in generate(engine_of(folder, dtype="bfloat16")))


def test_the_end_of_all_dtypes_and_an_absurd_weight(damaged):
    """One expert's scale is wrong by so much that bfloat16's range ends."""

    def change(tensors):
        tensors[EXPERT.format(5, "up")] *= 1e38

    folder = damaged(change)
    for backend in ("cpu", "reference"):
        finding = the_finding(engine_of(folder, dtype="bfloat16", moe_backend=backend), PROMPTS[:1])
        assert (finding.layer, finding.expert) == (1, 5) and finding.op in ("activation", "down", "up")
        note = {note.name: note for note in finding.weights}["layers.1.mlp.experts.5.up.weight"]
        assert note.nonfinite == 0 and note.ratio > 1e37


def test_keys_that_a_float16_cache_cannot_hold(damaged):
    def change(tensors):
        tensors[ATTENTION.format(1, "v")] *= 1e5

    folder = damaged(change)
    finding = the_finding(engine_of(folder, kv_cache_dtype="float16"))
    assert (finding.layer, finding.expert) == (1, None) and finding.op == "attention: keys and values as they are kept"
    assert "--kv-cache-dtype" in finding.advice
    assert all(output.error is None for output in generate(engine_of(folder)))


@pytest.mark.parametrize("part", "qkvo")
def test_projections_of_attention_have_their_own_names(damaged, part):
    def change(tensors):
        tensors[ATTENTION.format(1, part)][5] = float("nan")

    finding = the_finding(engine_of(damaged(change)))
    assert (finding.layer, finding.op) == (1, f"attention.{part}")
    assert finding.weights[0].name == f"layers.1.attention.{part}.weight"


def test_a_norm(damaged):
    def change(tensors):
        tensors["model.layers.2.post_attention_layernorm.weight"][9] = float("nan")

    finding = the_finding(engine_of(damaged(change)))
    assert (finding.layer, finding.op) == (
        2,
        "ffn_norm",
    ) and "layers.2.ffn_norm.weight, the first at [9]" in finding.cause


def test_a_chunk_that_gives_no_logits(damaged):
    """The place is that of the step in which it arose, not the attention that comes upon it later."""

    def change(tensors):
        tensors["model.embed_tokens.weight"][77] = float("nan")

    prompt = [77, *range(30)]
    llm = engine_of(damaged(change), max_num_batched_tokens=8)
    finding = the_finding(llm, [prompt])
    assert finding.op == "embed" and finding.position == 0


def test_a_model_without_damage(tiny_model):
    """The same tokens, no findings, and what each operation reached."""
    folder = tiny_model("qwen3_moe")
    llm = engine_of(folder)
    outputs = [output.outputs[0].token_ids for output in generate(llm)]
    assert outputs == [o.outputs[0].token_ids for o in generate(engine_of(folder, diagnose=False))]
    runner = llm.llm_engine.engine.executor.runner
    watch = runner.watch
    assert runner.recorded is None
    assert not watch.findings and watch.finding_of(0) is None
    peak, dtype = watch.peaks["layers.1.attention.o"]
    assert 0 < peak < 1e3 and dtype is torch.float32
    assert {"embed", "layers.0.mlp: experts", "lm_head", "layers.2.attention.qkv"} <= watch.peaks.keys()


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next", "jamba"])
def test_room_that_is_not_filled_yet_is_no_finding(tiny_model, family):
    """Fresh memory holds anything: here NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        llm = engine_of(tiny_model(family))
        assert all(output.error is None for output in generate(llm, max_tokens=2)) and not findings_of(llm)
    finally:
        torch.use_deterministic_algorithms(False)


def test_off_leaves_the_kernels_as_they_are(tiny_model):
    """Nothing stands between a layer and its kernel; and a watch that is taken off leaves nothing."""
    from moesaic.kernels.registry import kernel
    from moesaic.worker.watch import Watch

    model = engine_of(tiny_model("qwen3_moe"), diagnose=False).llm_engine.engine.executor.model
    backend = "cpu" if model._mix is kernel("mix", "cpu") else "reference"
    assert model.layers[0].mlp._fused_moe is kernel("fused_moe", backend)
    watch = Watch(model)
    assert model.layers[0].mlp._fused_moe is not kernel("fused_moe", backend)
    watch.detach()
    assert model.layers[0].mlp._fused_moe is kernel("fused_moe", backend)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen3_next", "jetmoe"])
def test_other_architectures(damaged, family):
    """A norm of the second layer is the place, whatever stands around it."""

    def change(tensors):
        tensors["model.layers.1.input_layernorm.weight"][2] = float("nan")

    finding = the_finding(engine_of(damaged(change, family)))
    assert (finding.layer, finding.expert, finding.op) == (1, None, "attention_norm")


@pytest.mark.parametrize("family", ["deepseek_v3", "granitemoehybrid"])  # packed, and a cache each request
def test_what_transformers_computes(damaged, family):
    """Its modules are looked at, by their own names."""

    def change(tensors):
        tensors["model.layers.1.post_attention_layernorm.weight"][2] = float("nan")

    finding = the_finding(engine_of(damaged(change, family), model_impl="transformers"))
    assert finding.layer == 1 and finding.where == "model.layers.1.post_attention_layernorm"
    assert "the first at [2]" in finding.cause


@pytest.mark.parametrize("impl", ["transformers", "native"])
def test_nothing_damaged_is_served_unless_it_is_looked_for(damaged, impl):
    """Whoever reads the weights."""

    def change(tensors):
        tensors["model.layers.1.post_attention_layernorm.weight"][2] = float("inf")

    folder = damaged(change, "deepseek_v3")
    with pytest.raises(CheckpointError, match="1 weight holds NaN or infinity") as error:
        engine_of(folder, model_impl=impl, diagnose=False)
    assert "model.layers.1.post_attention_layernorm.weight" in str(error.value)
    assert "1 of 64 numbers, the first at [2]" in str(error.value)


@pytest.mark.parametrize("impl", ["transformers", "native"])
def test_experts_of_both_ways(damaged, impl):
    """Those that transformers' code calls are ours too."""

    def change(tensors):
        tensors[EXPERT.format(5, "up")][3, 2] = float("nan")

    llm = engine_of(damaged(change, "deepseek_v3"), model_impl=impl)
    assert "layer 1, expert 5, up" in generate(llm, PROMPTS[:1])[0].error
    assert findings_of(llm)[0].weights[0].first == (3, 2)


def test_a_shared_expert(damaged):
    def change(tensors):
        tensors["model.layers.1.mlp.shared_experts.down_proj.weight"][3, 2] = float("nan")

    finding = the_finding(engine_of(damaged(change, "deepseek_v3")))
    assert (finding.layer, finding.expert, finding.op) == (1, None, "mlp.shared.down")


@pytest.mark.parametrize("part", "qk")
def test_norms_of_queries_and_keys(damaged, part):
    def change(tensors):
        tensors[f"model.layers.1.self_attn.{part}_norm.weight"][2] = float("nan")

    finding = the_finding(engine_of(damaged(change)))
    assert finding.layer == 1 and f"1 in layers.1.attention.{part}_norm.weight, the first at [2]" in finding.cause
    assert finding.op == {"q": "attention: queries", "k": "attention: the heads' output"}[part]


@pytest.mark.parametrize("part", ["q", "o", "k"])
def test_experts_that_attend_with_their_own(tmp_path, part):
    """Their rows are not the step's tokens: the finding is that of the expert all the same."""
    weights = {name: weight.clone() for name, weight in OWNED.items()}
    weights[f"layers.0.attention.experts.2.{part}.weight"][1, 3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 60, "num_experts": 4}))
    (tmp_path / "arch.py").write_text(ARCH)
    llm = engine_of(str(tmp_path), arch=str(tmp_path / "arch.py"))
    finding = the_finding(llm, [[i % 60 for i in range(n)] for n in (30, 40)])
    assert (finding.layer, finding.expert, finding.op) == (0, 2, part)
    assert finding.weights[0].name == f"layers.0.attention.experts.2.{part}.weight" and finding.weights[0].first == (
        1,
        3,
    )


def test_experts_that_attend_with_common_keys(damaged):
    def change(tensors):
        tensors["model.layers.1.self_attention.experts.input_linear.weight"][4, 1, 2] = float("nan")

    finding = the_finding(engine_of(damaged(change, "jetmoe")))
    assert (finding.layer, finding.expert, finding.op) == (1, 4, "attention: queries of experts")


def test_it_is_written_as_json(damaged):
    def change(tensors):
        tensors[EXPERT.format(5, "down")][7, 3] = float("nan")

    finding = the_finding(engine_of(damaged(change)), PROMPTS[:1])
    assert "layers.1.mlp.experts.5.down.weight" in json.dumps(asdict(finding))
    assert any("router: logits from" in line for line in finding.details())
    assert any("norm of the expert's output nan" in line for line in finding.details())
