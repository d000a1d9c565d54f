"""The staged proof: tiny models of many families pass it against transformers, and what it says is true."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from moesaic.adapt import record, verify
from moesaic.adapt.proof import compare, scan
from moesaic.adapt.proof.captured import Probe, by_token, difference, other_choices
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.prompts import from_file
from moesaic.adapt.proof.reference_hf import load_hf
from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.entrypoints.cli.main import main
from tests.families.backend import model_of
from tests.parity.driver import load
from tests.tiny_models import draw, make_tiny

FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "olmoe", "granitemoe", "qwen3_next", "qwen3_vl_moe")
NOT_ALONE = ("jetmoe", "llama4_text")  # their experts cannot be called by themselves in transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_pass(family, tiny_model):
    proof = verify(tiny_model(family), "hf")
    assert proof.proven, proof.failed
    assert [stage.status for stage in proof.stages] == ["passed"] * 5
    assert proof.reference.startswith("transformers")
    assert all(stage.worst.difference < 1e-5 for stage in proof.stages[1:])


@pytest.mark.parametrize("family", NOT_ALONE)
def test_experts_that_cannot_be_called_alone(family, tiny_model):
    proof = verify(tiny_model(family))
    assert proof.proven
    assert [stage.status for stage in proof.stages] == ["passed", "skipped", "skipped", "passed", "passed"]
    assert "cannot be called alone" in proof.stages[1].summary


def test_layers_of_the_reference_that_are_two_of_ours(tiny_model):
    proof = verify(tiny_model("longcat_flash"))
    assert proof.proven and proof.stages[3].status == "passed"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_held_against_fp32(dtype, tiny_model):
    proof = verify(tiny_model("qwen3_moe"), dtype=dtype)
    assert proof.proven, proof.failed
    assert proof.stages[4].worst.difference > 1e-4  # it is not fp32 that ran


def test_the_first_layers_alone(tiny_model):
    proof = verify(tiny_model("qwen3_moe"), layers=2)
    assert proof.proven
    assert {c.layer for c in proof.stages[3].comparisons} == {None, 0, 1}
    assert proof.limits == ("the first 2 of 3 layers",)
    with pytest.raises(ConfigError, match="--layers must be from 1 to 3, .* got 9"):
        verify(tiny_model("qwen3_moe"), layers=9)


@pytest.mark.parametrize("architecture", ["ZayaForCausalLM", "AXK2ForCausalLM"])
def test_an_architecture_that_transformers_computes(architecture, tmp_path):
    """What no spec describes is compared at its ends."""
    draw(model_of(architecture)).save_pretrained(tmp_path)
    proof = verify(str(tmp_path))
    assert proof.proven, proof.failed
    assert [stage.status for stage in proof.stages] == ["passed", "skipped", "skipped", "skipped", "passed"]
    assert "shares modelling code" in proof.reference


DRAFT = """
from moesaic.models.archs.qwen3_moe import RULES, spec
ARCHITECTURE = "MoEModel"
"""


def test_an_unknown_architecture_has_only_our_own_model(tiny_model, tmp_path):
    shutil.copytree(tiny_model("qwen3_moe"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "architectures": ["MoEModel"], "model_type": "moe_model"}))
    (tmp_path / "draft.py").write_text(DRAFT)
    proof = verify(str(tmp_path / "model"), arch=str(tmp_path / "draft.py"))
    assert proof.proven and "plain fp32 model" in proof.reference
    assert any(note.startswith("no independent reference") for note in proof.notes)
    assert proof.limits == ("by our own plain model alone",)
    with pytest.raises(CheckpointError, match="transformers does not load"):
        verify(str(tmp_path / "model"), "hf", arch=str(tmp_path / "draft.py"))


def test_recorded_by_our_own_model(tiny_model, tmp_path):
    path, file = tiny_model("mixtral"), str(tmp_path / "recorded")
    assert "own plain fp32" in record(path, file, "engine")
    held = load_file(file)
    assert held["input_ids.0"].dtype == torch.int64 and held["logits.0"].dtype == torch.float32
    assert held["logits.0"].shape == (len(held["input_ids.0"]), 128)
    assert held["hidden.0"].shape == (4, len(held["input_ids.0"]), 64)
    proof = verify(path, file)
    assert proof.proven and "recorded from moesaic" in proof.reference


def test_recorded_by_transformers_is_what_transformers_says(tiny_model, tmp_path):
    path, file = tiny_model("olmoe"), str(tmp_path / "recorded")
    record(path, file)
    held, model = load_file(file), load_hf(path)
    for n in range(3):
        tokens = held[f"input_ids.{n}"].tolist()
        assert torch.equal(model.run(tokens, trace=False).logits, held[f"logits.{n}"])


def test_own_prompts(tiny_model, tmp_path):
    file = tmp_path / "prompts"
    file.write_text("[1, 2, 3]\n")
    proof = verify(tiny_model("olmoe"), prompts_file=str(file))
    assert proof.proven and any(note.startswith("the prompts reach") for note in proof.notes)  # not every expert
    for line in (b"[1, 2, 300]", b"[1, 2.0]", b"[" * 100_000, b"[1"):
        file.write_bytes(b"[1, 2, 3]\n" + line)
        with pytest.raises(ConfigError, match="line 2"):
            from_file(str(file), "", 128, 100)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(str(file), "", 128, 100)


def test_json_of_a_proof(tiny_model, capsys, monkeypatch):
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "ERROR")  # or the command would set it for all later tests
    with pytest.raises(SystemExit) as end:
        main(["verify", tiny_model("olmoe"), "--json"])
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["proven"] and [stage["status"] for stage in told["stages"]] == ["passed"] * 5


def test_the_report_is_one_file_with_its_pictures(tiny_model, tmp_path):
    from xml.etree import ElementTree

    from moesaic.adapt.proof.report_html import write_report

    file = tmp_path / "report.html"
    write_report(verify(tiny_model("olmoe")), str(file))
    text = file.read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 4 and all(ElementTree.fromstring(picture) is not None for picture in pictures)
    assert text.count("<rect") > 24 + 15  # each expert, and each layer's parts
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(verify(tiny_model("olmoe")), str(tmp_path))


def test_an_engine_that_differs_while_the_plain_model_does_not(tiny_model, monkeypatch, cpu_library):
    """A fault of the kernels is told from one of the spec."""
    apply = OurModel.apply

    def wrong(self, probe):
        out = apply(self, probe)
        return out * 1.5 if self.moes[0].experts.packed is not None else out

    monkeypatch.setattr(OurModel, "apply", wrong)
    proof = verify(tiny_model("qwen3_moe"))
    assert proof.failed is not None and proof.failed.number == 1
    assert proof.causes[0].certain and "plain fp32 arithmetic" in proof.causes[0].what


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_the_epsilon_of_all_norms_is_a_cause(family, tmp_path):
    path = make_tiny(family, tmp_path / "model")
    record(str(path), str(tmp_path / "reference"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    proof = verify(str(path), str(tmp_path / "reference"))
    (cause,) = proof.causes
    assert cause.certain and cause.what == f"norms' epsilon {config['rms_norm_eps']:g} (the spec says 0.001)"


def test_layers_are_told_apart(tiny_model, cpu_library):
    """Stage 3 names the layer and the part in which something is wrong, not those behind it."""
    path = tiny_model("qwen3_moe")
    reference, engine = load_hf(path), OurModel(load(path))
    prompt = reference.run(list(range(2, 30)), trace=True)
    engine.model.layers[1].mlp.router.weight = _other(engine.model.layers[1].mlp.router.weight)
    stage = compare.layer_by_layer(engine, [prompt], "", "float32", 1e-4)
    assert stage.status == "failed" and stage.problems[0].startswith("layer 1, router logits")
    assert {c.layer for c in stage.comparisons if c.counts and not c.agrees} == {1}


def _other(matrix):
    """A packed matrix with other numbers."""
    return type(matrix).of(matrix.unpack().flip(0), matrix.format)


def test_probes_reach_every_expert(tiny_model):
    engine = OurModel(load(tiny_model("granitemoe")))
    for probe in compare.lone_probes(engine.model.spec):
        assert probe.ids.unique().tolist() == list(range(8))
    probe = compare.fixed_probes(engine.model.spec)[0]
    assert probe.ids[5].tolist() == [5, 6, 7] and probe.ids[6].tolist() == [6, 7, 0]
    assert torch.allclose(probe.weights.sum(-1), torch.ones(len(probe.weights)))


def test_differences():
    a = torch.tensor([[1.0, 2.0], [4.0, -8.0]])
    assert difference(a, a) == 0.0 and difference(a + 1, a) == pytest.approx(1 / 8)
    assert difference(a, a[:1]) == float("inf")
    assert by_token(a + torch.tensor([[0.0, 4.0], [0.0, 0.0]]), a).tolist() == [0.5, 0.0]
    assert not difference(a * float("nan"), a) <= 1e9
    assert other_choices(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [3, 5]])).tolist() == [False, True]


def test_a_scan_reads_what_a_checkpoint_holds(tmp_path):
    from moesaic.models.load import read_spec

    path = str(make_tiny("olmoe", tmp_path))
    architecture, spec = read_spec(path)
    accounts = scan.account(path, architecture, spec)
    assert accounts.num_parameters == sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert scan.scan(accounts, lambda name: True, lambda text: None).status == "passed"


def test_experts_alone_are_transformers_own(tiny_model):
    """The reference's experts are called, not rebuilt: a change in its module shows."""
    model = load_hf(tiny_model("mixtral"))
    probe = Probe(1, torch.randn(3, 64), torch.tensor([[4]] * 3), torch.ones(3, 1))
    before = model.apply(probe)
    with torch.no_grad():
        model.layers[1].mlp.experts.down_proj[4] *= 2
    assert torch.allclose(model.apply(probe), 2 * before)
