"""`inspect` agrees with what loads, of every native family; and names what is damaged, with layer and expert."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from moesaic.adapt import inspect, survey
from moesaic.adapt.draft.drafting import Drafter
from moesaic.core.errors import CheckpointError, ConfigError, MoesaicError
from moesaic.entrypoints.cli.main import cli
from moesaic.layers.base import BuildContext
from moesaic.models.decoder import Decoder
from moesaic.models.load import read_spec
from tests.families import CONFIGS

H, INNER, LAYERS, EXPERTS = 192, 128, 5, 16  # of the embedded model
SAMPLE = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3"),
    *("gpt_oss", "dbrx", "jetmoe", "nemotron_h", "gemma4", "llama4"),
)


@pytest.fixture
def folder(embedded_path, tmp_path):
    """A copy of the embedded model, to be damaged."""
    return shutil.copytree(embedded_path, tmp_path / "model")


def change_config(folder, **values):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_tensors(folder, change):
    """`change` takes and alters the dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def wrongs(report):
    return [misfit.what for misfit in report.misfits] + [str(problem) for problem in report.problems]


def expert(layer, number, part):
    return f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight"


@pytest.mark.parametrize(
    "family", [f if f in SAMPLE else pytest.param(f, marks=pytest.mark.parity_full) for f in CONFIGS]
)
def test_every_native_family(tiny_model, family):
    path = tiny_model(family)
    report = inspect(path)
    assert report.ok and report.identity.served == "native" and report.told_from == "spec", wrongs(report)
    assert {use.state for use in report.uses} <= {"used", "ignored", "checked"}
    _, spec = read_spec(path)
    assert (report.parameters, report.active) == (spec.num_parameters, spec.num_active_parameters)
    assert report.layers == len(spec.layers)
    model = Decoder(spec, BuildContext(torch.device("meta"), torch.float32))
    filled = {parameter for use in report.uses if use.state == "used" for parameter in use.parameters}
    assert filled  # and each pattern of the model's parameters is some tensor's
    names = {".".join("#" if part.isdecimal() else part for part in n.split(".")) for n, _ in model.named_views()}
    optional = {name for name in names if name.endswith("bias")}  # may be zero where a checkpoint has none
    assert names - optional <= filled
    assert report.memory is not None and report.memory.weights[0].scheme == "none"
    assert sum(part.nbytes for part in report.parts) == report.nbytes


def test_the_embedded_model(embedded_path):
    report = inspect(embedded_path)
    assert report.identity.served == "native" and report.ok
    assert (report.layers, report.experts, report.top_k, report.format) == (LAYERS, EXPERTS, 2, "safetensors")
    assert report.dtypes == {"BF16": report.nbytes}
    gate = next(use for use in report.uses if "gate_proj" in use.pattern)
    assert gate.pattern == "model.layers.{l}.mlp.experts.{e}.gate_proj.weight"
    assert (gate.becomes, gate.count, gate.layers, gate.experts) == ("gate of each expert", 80, "0..4", "0..15")
    schemes = {w.scheme: w.nbytes for w in report.memory.weights}
    assert schemes["w4a16"] < schemes["w8a16"] < schemes["none"]
    kept = {cache.dtype: cache.token for cache in report.memory.caches}
    assert kept["bfloat16"] == 2 * 2 * 32 * 2 * LAYERS  # keys and values of two heads of 32, two bytes each
    json.dumps(report.as_dict())


def test_missing_experts_are_named(folder):
    def drop(tensors):
        for number in (3, 7):
            for part in ("gate", "up", "down"):
                del tensors[expert(1, number, part)]
        del tensors[expert(2, 15, "up")]

    change_tensors(folder, drop)
    report = inspect(folder)
    assert [(m.kind, m.layers, m.experts) for m in report.misfits] == [
        ("missing", (1,), (3, 7)),
        ("missing", (2,), (15,)),
    ]
    assert "layer 1: experts 3 and 7 of 0..15 are missing" in wrongs(report)
    assert "layer 2: up of expert 15 is missing" in wrongs(report)


def test_a_transposed_expert_is_named(folder):
    change_tensors(folder, lambda t: t.update({expert(4, 11, "down"): t[expert(4, 11, "down")].T.contiguous()}))
    (misfit,) = inspect(folder).misfits
    assert (misfit.kind, misfit.layers, misfit.experts) == ("misshaped", (4,), (11,))
    assert (
        f"is [{INNER}, {H}], the config asks for [{H}, {INNER}]: it is transposed (layer 4, expert 11)" in misfit.what
    )


def test_a_wrong_dtype_is_named(folder):
    def change(tensors):
        tensors[expert(0, 5, "gate")] = tensors[expert(0, 5, "gate")].to(torch.int8)
        tensors[expert(3, 2, "up")] = tensors[expert(3, 2, "up")].to(torch.float16)

    change_tensors(folder, change)
    report = inspect(folder)
    (misfit,) = report.misfits
    assert (misfit.kind, misfit.layers, misfit.experts) == ("dtype", (0,), (5,)) and "I8" in misfit.what
    assert any(expert(3, 2, "up") in remark and "F16" in remark for remark in report.remarks)  # odd, but it serves


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    report = inspect(folder)
    assert not report.ok and "truncated" in str(report.problems[0]) and "1000 missing" in str(report.problems[0])
    assert not report.misfits and report.identity.served == "native"  # headers are whole


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_experts": 20}, "layers 0..4: experts 16, 17, 18 and 19 of 0..19 are missing"),
        ({"num_experts": 12}, "experts 12..15: the config says 12 experts"),
        ({"num_hidden_layers": 7}, "layers 5..6 of 0..6 are missing altogether: the config says 7 layers"),
        ({"num_hidden_layers": 3}, "layers 3..4: the config says 3 layers"),
        ({"vocab_size": 1000}, "ask for 1000 (vocab_size in config.json), all wrong tensors have 1536"),
        ({"hidden_size": 160}, "ask for 160 (hidden_size in config.json), all wrong tensors have 192"),
        (
            {"moe_intermediate_size": 96},
            "ask for 96 (moe_intermediate_size in config.json), all wrong tensors have 128",
        ),
    ],
)
def test_a_config_that_differs_from_the_tensors(folder, values, expected):
    change_config(folder, **values)
    found = wrongs(inspect(folder))
    assert any(expected in what for what in found), found


def test_a_tensor_under_another_name_has_no_use(folder):
    change_tensors(
        folder, lambda t: t.update({"model.layers.2.mlp.gaet.weight": t.pop("model.layers.2.mlp.gate.weight")})
    )
    report = inspect(folder)
    missing, superfluous = report.misfits
    assert missing.kind == "missing" and missing.layers == (2,) and "model.layers.2.mlp.gaet.weight" in missing.what
    assert superfluous.kind == "superfluous" and "model.layers.{l}.mlp.gaet.weight" in superfluous.what


def test_a_key_that_nobody_knows_and_no_config(folder):
    change_config(folder, odd_key=3)
    assert "odd_key" in str(inspect(folder).problems)
    (folder / "config.json").unlink()
    report = inspect(folder)
    assert report.identity.architecture == "" and report.told_from == "names"
    assert (report.layers, report.experts, report.top_k) == (LAYERS, EXPERTS, None)
    assert report.active is None and report.parameters == 6_702_464


def test_tensors_of_an_unknown_architecture_are_what_a_draft_takes_them_to_be(folder):
    names = {
        "model.embed_tokens.": "wte.",
        "lm_head.": "unembed.",
        "model.norm.": "ln_out.",
        "model.layers.": "blocks.",
        "input_layernorm": "ln_attn",
        "post_attention_layernorm": "ln_ffn",
    }

    def rename(tensors):
        for name in list(tensors):
            other = name
            for theirs, ours in names.items():
                other = other.replace(theirs, ours)
            tensors[other] = tensors.pop(name)
        tensors.setdefault("unembed.weight", tensors["wte.weight"].clone())

    change_tensors(folder, rename)
    change_config(folder, architectures=["NobodysForCausalLM"], model_type="nobodys")
    report = inspect(folder)
    became = {use.pattern: (use.becomes, use.part) for use in report.uses if use.state == "guessed"}
    assert became["wte.weight"] == ("token embeddings", "embedding")
    assert became["unembed.weight"] == ("output projection", "head")
    assert became["ln_out.weight"] == ("last norm", "norms")
    assert became["blocks.{l}.ln_attn.weight"] == ("norm before attention", "norms")
    assert became["blocks.{l}.ln_ffn.weight"] == ("norm before the feed-forward", "norms")
    assert {use.state for use in report.uses} == {"guessed"}


def test_the_nearest_architecture_of_a_language_model_in_a_wrapper(tiny_model, tmp_path):
    path = shutil.copytree(tiny_model("qwen3_moe"), tmp_path / "model")
    text = json.loads((path / "config.json").read_text())
    del text["architectures"]
    outer = {"architectures": ["NobodysForConditionalGeneration"], "model_type": "nobodys", "text_config": text}
    (path / "config.json").write_text(json.dumps(outer))
    nearest = inspect(path).nearest[0]
    assert (nearest.architecture, nearest.score, nearest.differs) == ("Qwen3MoeForCausalLM", 1.0, [])


def test_holes_without_knowing_the_architecture(folder):
    change_config(folder, architectures=["Odd"], model_type="odd")
    assert inspect(folder).ok
    change_tensors(
        folder, lambda t: [t.pop(expert(1, 3, p)) for p in ("gate", "up", "down")] and t.pop(expert(4, 9, "up"))
    )
    found = wrongs(inspect(folder))
    assert "layer 1: expert 3 of 0..15 is missing" in found
    assert any("layer 4" in what and "up_proj.weight of expert 9 is missing" in what for what in found)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_experts": 10**8},
        {"architectures": ["Odd"], "num_experts": 10**8},
        {"num_experts": -1},
        {"vocab_size": "x"},
        {"quantization_config": [1]},
        {"quantization_config": {"quant_method": ["x"]}},
        {"architectures": None, "model_type": ["x"]},
        {"architectures": ["[red]x[/b]"], "model_type": "[/b]"},
    ],
)
def test_a_damaged_config_is_told_and_no_end(folder, values):
    change_config(folder, **values)
    result = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert isinstance(result.exception, SystemExit | None) and result.output


def test_what_transformers_serves(folder):
    change_config(folder, architectures=["ZayaForCausalLM"], model_type="zaya")
    report = inspect(folder)
    assert report.identity.served == "transformers" and report.memory is None and report.ok


def test_the_command(folder):
    result = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert result.exit_code == 0 and "it can be served" in result.output
    assert all(len(line) <= 100 for line in result.output.splitlines())
    change_tensors(folder, lambda t: t.pop(expert(1, 3, "up")))
    result = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert result.exit_code == 1 and "layer 1: up of expert 3 is missing" in result.output
    result = CliRunner().invoke(cli, ["inspect", str(folder), "--json", "--tensors"])
    found = json.loads(result.output)
    assert result.exit_code == 1 and found["ok"] is False and found["misfits"][0]["experts"] == [3]
    assert {"name": "model.norm.weight", "dtype": "BF16", "shape": [H], "file": "model.safetensors"} in found[
        "every_tensor"
    ]


def test_errors_of_the_command(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "moesaic", "inspect", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert out.returncode == 1 and out.stderr.startswith("error: ") and "Traceback" not in out.stderr
    with pytest.raises(ConfigError, match="neither a folder here nor a Hugging Face id"):
        inspect(tmp_path / "none")
    (tmp_path / "weights.bin").write_bytes(b"0")
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        inspect(tmp_path / "weights.bin")
    with pytest.raises(MoesaicError):
        inspect(tmp_path, arch=str(tmp_path / "none.py"))


def test_an_id_of_the_hub(folder, monkeypatch):
    asked = []

    def find(model):
        asked.append(model)
        return str(folder)

    monkeypatch.setattr(survey, "find_model", find)
    result = CliRunner().invoke(cli, ["inspect", "somebody/some-model", "--json", "--tensors"])
    found = json.loads(result.output)
    assert found["ok"] and found["path"] == str(folder) and found["every_tensor"][0]["file"] == "model.safetensors"
    assert Drafter(survey.survey("somebody/some-model")).draft().path == str(folder)
    inspect(folder)
    assert asked == ["somebody/some-model"] * 2  # and a folder is not looked for


def test_without_torch(embedded_path):
    code = (
        "import sys; from moesaic.entrypoints.cli.main import main\n"
        "try: main(['inspect', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, embedded_path], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
