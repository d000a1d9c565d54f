"""What goes wrong with checkpoints is caught and named: which layer, which expert, what, by exit status 1 and one line.

Each damage is done to a good checkpoint on disk. What the file alone can tell is told by stage 0; what no look at the
file can tell, against a reference that was recorded while the checkpoint was good, from its logits alone.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moesaic.core.errors import CheckpointError
from moesaic.entrypoints.cli.main import main
from moesaic.weights import loader
from tests.parity.driver import load
from tests.tiny_models import make_tiny

LAYER, EXPERT = 1, 5
PREFIX = f"model.layers.{LAYER}.mlp.experts.{EXPERT}"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good checkpoint with square experts."""
    return make_tiny("qwen3_moe", tmp_path_factory.mktemp("good"), moe_intermediate_size=64)


@pytest.fixture(scope="module")
def recorded(good, tmp_path_factory):
    """What transformers made of it, logits alone."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOESAIC_LOG_LEVEL", "ERROR")
        main_ok("verify", str(good), "--record", str(folder / "all"))
    with safe_open(folder / "all", "pt") as file:
        metadata = file.metadata()
    kept = {n: t for n, t in load_file(folder / "all").items() if n.startswith(("input_ids", "logits"))}
    save_file(kept, folder / "logits", metadata=metadata)
    return folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "ERROR")  # or the command would set it for all later tests


@pytest.fixture
def path(good, tmp_path):
    """A copy to be damaged."""
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def main_ok(*args):
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert not end.value.code


def refused(capsys, *args):
    """What `moesaic verify` says, which must end with status 1 and without a traceback."""
    with pytest.raises(SystemExit) as end:
        main(["verify", *map(str, args)])
    out = capsys.readouterr()
    assert end.value.code == 1
    assert "Traceback" not in out.out + out.err
    return re.sub(r"\s+", " ", out.out + out.err)


def tensors(path, change):
    """Change the tensors of a checkpoint."""
    held = load_file(path / WEIGHTS)
    change(held)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, path / WEIGHTS, metadata={"format": "pt"})


def config(path, **keys):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_the_good_one_is_proven(good, recorded):
    main_ok("verify", str(good), "--reference", str(recorded / "logits"))


def test_missing_expert(path, capsys):
    def change(held):
        for part in ("gate_proj", "up_proj", "down_proj"):
            del held[f"{PREFIX}.{part}.weight"]

    tensors(path, change)
    said = refused(capsys, path)
    assert f"{PREFIX}.gate_proj.weight" in said and "missing" in said
    with pytest.raises(CheckpointError, match=re.escape(PREFIX)):
        load(path)


def swap(held):
    gate, up = f"{PREFIX}.gate_proj.weight", f"{PREFIX}.up_proj.weight"
    held[gate], held[up] = held[up], held[gate]


@pytest.mark.parametrize("kept", ["all", "logits"])
def test_swapped_gate_and_up(kept, path, recorded, capsys):
    tensors(path, swap)
    said = refused(capsys, path, "--reference", recorded / kept)
    assert f"with gate and up of expert {EXPERT} of layer {LAYER} swapped" in said and "this is the cause" in said


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_transposed_square_expert(part, path, recorded, capsys):
    name = f"{PREFIX}.{part}_proj.weight"
    tensors(path, lambda held: held.update({name: held[name].T}))
    said = refused(capsys, path, "--reference", recorded / "logits")
    assert f"with {part} of expert {EXPERT} of layer {LAYER} transposed" in said and "this is the cause" in said


def test_exchanged_experts(path, recorded, capsys):
    def change(held):
        for part in ("gate_proj", "up_proj", "down_proj"):
            a, b = f"{PREFIX}.{part}.weight", f"model.layers.{LAYER}.mlp.experts.2.{part}.weight"
            held[a], held[b] = held[b], held[a]

    tensors(path, change)
    said = refused(capsys, path, "--reference", recorded / "logits")
    assert f"of layer {LAYER} exchanged" in said and "this is the cause" in said


def test_duplicated_expert(path, capsys, monkeypatch):
    def change(held):
        for part in ("gate_proj", "up_proj", "down_proj"):
            held[f"{PREFIX}.{part}.weight"] = held[f"model.layers.{LAYER}.mlp.experts.2.{part}.weight"].clone()

    tensors(path, change)
    said = refused(capsys, path)
    assert f"layer {LAYER}, expert {EXPERT} is a copy of layer {LAYER}, expert 2: duplicated" in said
    warned = []
    monkeypatch.setattr(loader.log, "warning", lambda text, *values: warned.append(text % values))
    load(path)  # it may be meant, so that it serves, but not silently
    assert f"layers.{LAYER}.mlp: experts 2 and {EXPERT} are the same" in "".join(warned)


def test_dead_expert(path, capsys):
    tensors(path, lambda held: held[f"{PREFIX}.down_proj.weight"].zero_())
    assert f"layer {LAYER}, expert {EXPERT}, down: all zero" in refused(capsys, path)


def test_absurd_norm(path, capsys):
    tensors(path, lambda held: held[f"{PREFIX}.up_proj.weight"].mul_(1e5))
    assert f"layer {LAYER}, expert {EXPERT}, up: its norm is 1e+05 times" in refused(capsys, path)


@pytest.mark.parametrize(("number", "word"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
def test_not_a_number_in_one_expert(number, word, path, capsys):
    tensors(path, lambda held: held[f"{PREFIX}.up_proj.weight"][3, 7].fill_(number))
    said = refused(capsys, path)
    assert f"layer {LAYER}, expert {EXPERT}, up: 1 of its numbers are {word}" in said
    with pytest.raises(CheckpointError, match=f"layer {LAYER}, expert {EXPERT}"):
        load(path)


def test_truncated_shard(path, capsys):
    file = path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])
    assert WEIGHTS in refused(capsys, path)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(path)


@pytest.mark.parametrize("top_k", [2, 4])
def test_wrong_top_k(top_k, path, recorded, capsys):
    config(path, num_experts_per_tok=top_k)
    said = refused(capsys, path, "--reference", recorded / "logits")
    assert f"with top-3 experts (the spec says {top_k})" in said and "this is the cause" in said


def test_missing_renormalisation(path, recorded, capsys):
    config(path, norm_topk_prob=False)
    said = refused(capsys, path, "--reference", recorded / "logits")
    assert "with the chosen experts' weights renormalised (the spec says not renormalised)" in said
    assert "this is the cause" in said


WRONG_ROPE = """
from dataclasses import replace
from moesaic.models.archs import qwen3_moe as known

ARCHITECTURE, RULES = "MoEModel", known.RULES

def spec(c):
    right = known.spec(c)
    turned = [replace(la.attention, rope=replace(la.attention.rope, interleaved=True)) for la in right.layers]
    return replace(right, layers=tuple(replace(la, attention=a) for la, a in zip(right.layers, turned)))
"""


@pytest.mark.parametrize("kept", ["all", "logits", None])
def test_wrong_rope_kind(kept, path, recorded, tmp_path, capsys):
    """Against a recorded reference, with and without hidden states, and against transformers' own model."""
    draft = tmp_path / "draft.py"
    draft.write_text(WRONG_ROPE)
    reference = ["--reference", recorded / kept] if kept else []
    said = refused(capsys, path, "--arch", draft, *reference)
    assert "with rope that turns pairs of halves (the spec says neighbours)" in said and "this is the cause" in said


SWAPPED_RULE = """
from moesaic.models.archs import qwen3_moe as known
from moesaic.models.archs.qwen3_moe import spec
from moesaic.weights.rules import experts

ARCHITECTURE = "MoEModel"
RULES = [r for r in known.RULES if not getattr(r, "target", "").startswith("layers.{l}.mlp.experts")]
RULES += experts("model.layers.{l}.mlp.experts.{e}", "up_proj", "gate_proj", "down_proj")
"""


def test_a_draft_that_swaps_gate_and_up(path, tmp_path, capsys):
    """Told by the first expert, against transformers."""
    draft = tmp_path / "draft.py"
    draft.write_text(SWAPPED_RULE)
    said = refused(capsys, path, "--arch", draft)
    assert "✗ 1" in said and "with gate and up swapped in every expert" in said and "this is the cause" in said


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda held: held.pop("logits.0"), "logits.0 must be"),
        (lambda held: held.update({"input_ids.0": held["input_ids.0"] + 1000}), "outside of the model's"),
        (lambda held: held["logits.0"].fill_(float("nan")), "not finite"),
        (lambda held: held.clear() or held.update({"x": torch.zeros(1)}), "no input_ids"),
    ],
)
def test_references_that_are_none(change, word, good, recorded, tmp_path, capsys):
    held = load_file(recorded / "logits")
    change(held)
    save_file(held, tmp_path / "reference")
    said = refused(capsys, good, "--reference", tmp_path / "reference")
    assert said.startswith("error: ") and word in said


def test_a_reference_that_is_no_file(good, tmp_path, capsys):
    (tmp_path / "reference").write_bytes(b"no safetensors")
    assert "error: " in refused(capsys, good, "--reference", tmp_path / "reference")
    assert "there is no such file" in refused(capsys, good, "--reference", tmp_path / "absent")


def test_what_no_weight_tells_is_served(path):
    """Swapped matrices load: nothing in the file is wrong. It is what the proof is for."""
    tensors(path, swap)
    assert load(path).spec.num_parameters
