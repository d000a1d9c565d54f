"""What loading sees of a checkpoint's weights: NaN is refused with its place, repeated and blank experts are told."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic.core.errors import CheckpointError
from moesaic.weights import staging
from moesaic.weights.loader import load_weights
from moesaic.weights.report import LoadReport, NotFinite, SameExperts, report_of
from moesaic.weights.rules import fused_experts, rename
from moesaic.weights.scan import scan_numbers
from moesaic.weights.sources import open_source
from tests.parity.driver import load

RULES = [
    rename("norm.weight", "norm.weight"),
    rename("q.weight", "layers.0.attention.q.weight"),
    *fused_experts("gate_up", "down", target="layers.0.mlp.experts.{e}", transposed=True, interleaved=True),
]
EXPERTS, H, INNER = 4, 40, 24


def checkpoint(folder, change=None):
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "norm.weight": (H,),
        "q.weight": (200, H),
        "gate_up": (EXPERTS, H, 2 * INNER),
        "down": (EXPERTS, INNER, H),
    }
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def filled(folder, **options):
    parameters = {"norm.weight": torch.zeros(H), "layers.0.attention.q.weight": torch.zeros(200, H)}
    for e in range(EXPERTS):
        prefix = f"layers.0.mlp.experts.{e}"
        parameters |= {f"{prefix}.{part}.weight": torch.zeros(INNER, H) for part in ("gate", "up")}
        parameters[f"{prefix}.down.weight"] = torch.zeros(H, INNER)
    report = load_weights(parameters, RULES, open_source(str(folder)), str(folder), progress=False, **options)
    return report, parameters


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def threads(request, monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 1)  # 64 rows a piece
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_a_sound_checkpoint_has_nothing_to_tell(tmp_path, caplog):
    checkpoint(tmp_path)
    report, parameters = filled(tmp_path)
    assert not report.suspicious and not [r for r in caplog.records if r.levelname == "WARNING"]
    assert report.norms.keys() == parameters.keys()
    for name, norm in report.norms.items():
        assert norm == pytest.approx(parameters[name].norm().item(), rel=1e-5)


def test_numbers_that_are_none_are_refused_with_their_place(tmp_path):
    def change(tensors):
        tensors["q.weight"][130, 7] = float("nan")
        tensors["q.weight"][199, 0] = float("inf")
        tensors["gate_up"][2, 11, 2 * 5 + 1] = float("-inf")  # up's row 5

    checkpoint(tmp_path, change)
    with pytest.raises(CheckpointError) as error:
        filled(tmp_path)
    lines = str(error.value).splitlines()
    assert "2 weights hold NaN or infinity" in lines[0] and str(tmp_path) in lines[0]
    assert (
        "layers.0.attention.q.weight [layer 0] (tensor q.weight): 2 of 8000 numbers, the first at [130, 7]" in lines[1]
    )
    assert (
        "layers.0.mlp.experts.2.up.weight [layer 0, expert 2] (tensor gate_up): 1 of 960 numbers, the first at [5, 11]"
        in lines[2]
    )
    report, parameters = filled(tmp_path, allow_nonfinite=True)
    assert report.not_finite[0] == NotFinite("layers.0.attention.q.weight", "q.weight", 2, 8000, (130, 7))
    assert parameters["layers.0.attention.q.weight"][130, 7].isnan()


def test_experts_that_repeat_each_other_are_told(tmp_path, caplog):
    def change(tensors):
        for name in ("gate_up", "down"):
            tensors[name][3] = tensors[name][1]
        tensors["down"][0] = tensors["down"][2]  # only a part: they differ

    checkpoint(tmp_path, change)
    report, _ = filled(tmp_path)
    assert report.same_experts == (SameExperts("layers.0.mlp", (1, 3)),)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "layers.0.mlp: experts 1 and 3 are the same" in warnings[0]


def test_blank_matrices_are_told_and_are_not_repeated_experts(tmp_path, caplog):
    def change(tensors):
        tensors["gate_up"][1:3] = 0
        tensors["down"][1:3] = 0

    checkpoint(tmp_path, change)
    report, _ = filled(tmp_path)
    assert len(report.blank) == 6 and not report.same_experts
    assert "nothing but zeros" in caplog.text and ": layer 0, expert 1" in caplog.text


def test_many_findings_make_a_message_of_bounded_length():
    scans = {f"layers.{i}.q.weight": scan_numbers(torch.full((2, 2), float("nan"))) for i in range(500)}
    shapes = dict.fromkeys(scans, (2, 2))
    report = report_of(scans, shapes, {name: f"theirs.{name}" for name in scans})
    assert len(report.refusal("here").splitlines()) == 22 and "... and 480 more" in report.refusal("here")
    assert LoadReport().warnings("here") == []


def test_a_model_is_refused_or_tells_what_it_saw(tiny_model, tmp_path):
    """Packed and plain; and `allow_nonfinite` loads it."""
    folder = tiny_model("mixtral", num_hidden_layers=2, num_local_experts=4)
    tensors = load_file(f"{folder}/model.safetensors")
    name = next(n for n in tensors if "layers.1." in n and ".experts." in n)
    shutil.copy(f"{folder}/config.json", tmp_path)
    assert not load(folder).load_report.suspicious
    assert dataclasses.asdict(load(folder).load_report)["norms"]["norm.weight"] > 0
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    for backend in ("auto", "reference"):
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.\d.*\[layer 1, expert \d\]"):
            load(str(tmp_path), backend=backend)
        model = load(str(tmp_path), backend=backend, allow_nonfinite=True)
        assert [found.count for found in model.load_report.not_finite] == [1]
