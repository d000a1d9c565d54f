"""`moesaic diagnose`, and its Python function: all weights, then prompts; what is wrong is named, and nothing else."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from moesaic.adapt import diagnose
from moesaic.core.errors import ConfigError
from moesaic.entrypoints.cli.main import cli, main

EXPERT = "model.layers.1.mlp.experts.{}.{}_proj.weight"
PLAIN = {"threads": 1, "max_num_seqs": 4}


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """A function: what to do to the tensors of a tiny checkpoint; gives its folder."""

    def make(change):
        shutil.copytree(tiny_model("qwen3_moe"), tmp_path / "damaged")
        file = tmp_path / "damaged" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        return str(tmp_path / "damaged")

    return make


def test_a_sound_model(tiny_model):
    found = diagnose(tiny_model("qwen3_moe"), **PLAIN)
    assert found.sound and not found.faults and not found.findings and not found.near_overflow
    assert found.num_weights == 3 * (4 + 2 + 2 + 1 + 8 * 3) + 3
    assert [run.num_generated for run in found.runs] == [8] and found.runs[0].num_tokens == 256  # it has no tokenizer
    assert found.num_experts == 24 and 12 < found.experts_reached <= 24
    assert found.peaks[0].share < 1e-30 and found.peaks[0].dtype == "float32"


def nan_in(tensors):
    tensors[EXPERT.format(6, "gate")][3, 9] = float("nan")
    tensors[EXPERT.format(6, "gate")][40, 1] = float("inf")


def scaled(tensors):
    tensors[EXPERT.format(6, "up")] *= 40


def zero(tensors):
    tensors[EXPERT.format(6, "down")].zero_()


def repeated(tensors):
    tensors[EXPERT.format(6, "down")] = tensors[EXPERT.format(2, "down")].clone()


@pytest.mark.parametrize(
    "change, kind, name, text",
    [
        (nan_in, "not finite", "gate", "2 numbers are not finite, the first at [3, 9]"),
        (scaled, "absurd norm", "up", "times the median of its kind"),
        (zero, "zero", "down", "all numbers are zero"),
        (repeated, "duplicate", "down", "equal to layers.1.mlp.experts.2.down.weight"),
    ],
)
def test_weights_that_no_training_leaves_behind(damaged, change, kind, name, text):
    found = diagnose(damaged(change), [[1, 2, 3]], max_tokens=1, **PLAIN)
    [fault] = found.faults
    assert (fault.name, fault.kind) == (f"layers.1.mlp.experts.6.{name}.weight", kind) and text in fault.text
    assert fault.tensor == (EXPERT.format(6, name) if kind == "not finite" else None)
    assert not found.sound


def test_near_the_end_of_float16(damaged):
    """It is said, and is no fault."""

    def change(tensors):
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.v_proj.weight"] *= 3e3

    found = diagnose(damaged(change), [list(range(60))], dtype="float16", moe_backend="reference", **PLAIN)
    assert found.sound
    near = {peak.place: peak for peak in found.near_overflow}
    assert 0.1 < near["layers.1.attention.qkv"].share < 1 and near["layers.1.attention.qkv"].dtype == "float16"


def test_the_command_on_what_is_sound_and_what_is_not(damaged, monkeypatch):
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "CRITICAL")
    options = ["--threads", "1", "--kv-cache-memory", "64MiB"]
    result = CliRunner().invoke(cli, ["diagnose", *options, "--prompt", "Hello", "--max-tokens", "3"])
    assert result.exit_code == 0, result.output
    assert "✓ weights: 287 looked at" in result.output and result.output.endswith("✓ sound\n")
    assert "✓ prompts: 1, 3 tokens generated" in result.output

    folder = damaged(nan_in)
    result = CliRunner().invoke(cli, ["diagnose", folder, *options])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "✗ layer 1, expert 6, gate: first NaN (layers.1.mlp)" in lines and lines[-1] == "✗ not sound"
    assert any(line.startswith("    router: logits from") for line in lines)
    assert max(map(len, lines[1:])) <= 100  # the first has the folder
    record = json.loads(CliRunner().invoke(cli, ["diagnose", folder, *options, "--json"]).output)
    assert record["sound"] is False and record["findings"][0]["expert"] == 6
    assert record["faults"][0]["kind"] == "not finite"


def test_what_cannot_be_loaded_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and lines[-1].startswith("error: ") and str(tmp_path) in lines[-1]
    with pytest.raises(ConfigError, match="diagnos"):
        diagnose(str(tmp_path), diagnosis=True)


def test_texts_need_a_tokenizer(tiny_model):
    with pytest.raises(ConfigError, match="tokenizer"):
        diagnose(tiny_model("qwen3_moe"), ["Hello"], **PLAIN)


def test_generate_with_the_flag(damaged, monkeypatch, tmp_path):
    """What goes wrong is said with its place, in one line."""
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "CRITICAL")
    from tests.conftest import EMBEDDED

    shutil.copytree(EMBEDDED, tmp_path / "model")
    [file] = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    for expert in range(16):
        tensors[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"][0, 5] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    asked = ["generate", "Hello", "--model", str(tmp_path / "model"), "--threads", "1", "--kv-cache-memory", "64MiB"]
    result = CliRunner().invoke(cli, [*asked, "--diagnose"])
    assert "first NaN in layer 2, expert" in str(result.exception)
