"""Checkpoints written anew: the same numbers under the names of Hugging Face, whole, resumable, hashed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moesaic import LLM, SamplingParams
from moesaic.adapt import convert, verify
from moesaic.adapt.conversion import convert as conversion
from moesaic.adapt.conversion import folder, tensors
from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.entrypoints.cli.main import cli
from moesaic.models.registry import ModelRegistry
from moesaic.models.spellings import saved_names
from moesaic.weights import manifest
from moesaic.weights.containers.safetensors import read_header
from moesaic.weights.export import Assembly, assemble, assemblies
from moesaic.weights.rules import Place, View, packed, rename
from tests.gguf_files import write_gguf
from tests.layouts import write_config, write_directories, write_megatron
from tests.quantised import gptq, mxfp4, rewrite, save
from tests.tiny_models import tiny_reference
from tools.make_spellings import names_of

TOKENS = [5, 17, 33, 90, 12, 77, 3]
NAMES = ["qwen3_moe", "mixtral", "granitemoe", "deepseek_v3", "jetmoe", "llama4", "phimoe", "gpt_oss"]


def tensors_of(folder):
    return {n: t for f in sorted(Path(folder).glob("*.safetensors")) for n, t in load_file(f).items()}


def tokens_of(folder, dtype="float32"):
    llm = LLM(model=str(folder), skip_tokenizer_init=True, dtype=dtype, kv_cache_memory="8MiB", max_model_len=64)
    (answer,) = llm.generate([TOKENS], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return answer.outputs[0].token_ids


def equal(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("family", NAMES)
def test_parameters_go_back_to_where_transformers_keeps_them(tiny_model, family, monkeypatch, tmp_path):
    """Through our own parameters and back, as for a source of other names: each tensor is the one that was read."""
    source = tiny_model(family)
    monkeypatch.setattr(tensors.Checkpoint, "named_well", False)
    convert(source, str(tmp_path / "hf"))
    made, given = tensors_of(tmp_path / "hf"), tensors_of(source)
    text = {name: tensor for name, tensor in given.items() if name in made}
    equal(made, text)
    left = [name for name in given if name not in made]
    assert all("vision" in name or "projector" in name for name in left), left


def test_names_are_kept_with_all_that_lies_there(tiny_model, tmp_path):
    source = tiny_model("qwen3_vl_moe")
    convert(source, str(tmp_path / "hf"))
    equal(tensors_of(tmp_path / "hf"), tensors_of(source))


def test_shards_and_their_index(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe")
    made = convert(source, str(tmp_path / "hf"), max_shard_size=100_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert made.files > 3 and set(index["weight_map"].values()) == {
        p.name for p in (tmp_path / "hf").glob("*.safetensors")
    }
    equal(tensors_of(tmp_path / "hf"), tensors_of(source))
    assert tokens_of(tmp_path / "hf") == tokens_of(source)


def test_another_dtype(tiny_model, tmp_path):
    convert(tiny_model("deepseek_v3"), str(tmp_path / "hf"), dtype="bfloat16")
    made = tensors_of(tmp_path / "hf")
    assert made["model.embed_tokens.weight"].dtype is torch.bfloat16
    assert made["model.layers.1.mlp.gate.e_score_correction_bias"].dtype is torch.float32
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def doubled(source, folder):
    """A checkpoint in float64, of which no number is one of float32."""
    shutil.copytree(source, folder)
    tensors = {name: tensor.double() * (1 + 1e-12) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float64"}))
    return folder


def test_float64_stays_unless_another_dtype_is_asked_for(tiny_model, tmp_path):
    """Under the names of Hugging Face nothing is lost; as another dtype, vectors keep 32 bits."""
    source = doubled(tiny_model("deepseek_v3"), tmp_path / "double")
    convert(str(source), str(tmp_path / "hf"))
    equal(tensors_of(tmp_path / "hf"), tensors_of(source))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float64"
    convert(str(source), str(tmp_path / "half"), dtype="bfloat16")
    made = {name: tensor.dtype for name, tensor in tensors_of(tmp_path / "half").items()}
    assert made["model.embed_tokens.weight"] is torch.bfloat16
    assert made["model.layers.1.mlp.gate.e_score_correction_bias"] is made["model.norm.weight"] is torch.float32


def test_float64_is_computed_in_float32(tiny_model, tmp_path, cpu_library):
    source, out = doubled(tiny_model("qwen3_moe"), tmp_path / "double"), tmp_path / "packed"
    assert tokens_of(source, "auto") == tokens_of(tiny_model("qwen3_moe"))
    convert(str(source), str(out), format="packed")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert tokens_of(out) == tokens_of(source)


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.fixture
def written(tmp_path):
    """Makes a tiny model, and its config in a folder: (the model, its weights by the hub's names, the folder)."""

    def make(family):
        folder = tmp_path / "given"
        folder.mkdir()
        model = tiny_reference(family)
        return model, write_config(model, folder), folder

    return make


def test_experts_in_directories(written, tmp_path):
    model, state, folder = written("qwen3_moe")
    write_directories(state, folder, "tensor", "loose")
    convert(str(folder), str(tmp_path / "hf"))
    equal(reloaded(tmp_path / "hf"), model.state_dict())


def test_megatron(written, tmp_path):
    model, state, folder = written("mixtral")
    write_megatron(state, model.config, folder, tp=2, ep=2)
    convert(str(folder), str(tmp_path / "hf"))
    equal(reloaded(tmp_path / "hf"), model.state_dict())


def test_gguf(tiny_model, tmp_path):
    source = tiny_model("qwen2_moe")
    write_gguf(source, tmp_path / "model.gguf")
    convert(str(tmp_path / "model.gguf"), str(tmp_path / "hf"))
    made, given = tensors_of(tmp_path / "hf"), tensors_of(source)
    equal(made, given)


def test_codes_become_floats(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe", moe_intermediate_size=64, num_experts=4, num_hidden_layers=2)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    rewrite(source, tmp_path, gptq(), config, lambda name: name.endswith("_proj.weight"))
    convert(str(tmp_path / "quantised"), str(tmp_path / "hf"), dtype="float32")
    made, wanted = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "plain")
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-3, rtol=1e-3)
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())


def test_blocks_that_lie_otherwise_than_floats(tiny_model, tmp_path):
    source = tiny_model("gpt_oss", num_hidden_layers=2, num_local_experts=4)
    stored = {}
    for name, tensor in tensors_of(source).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            made = [mxfp4(expert.T)[0] for expert in tensor]
            stored |= {f"{name}_{kind}": torch.stack([each[kind] for each in made]) for kind in ("blocks", "scales")}
        else:
            stored[name] = tensor
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    save(source, tmp_path / "quantised", stored, config)
    convert(str(tmp_path / "quantised"), str(tmp_path / "hf"), dtype="float32")
    made, given = tensors_of(tmp_path / "hf"), tensors_of(source)
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in given.items()}
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.nn.functional.cosine_similarity(made[name].flatten(), given[name].flatten(), dim=0) > 0.98


# Stopping, and going on.


def test_a_conversion_that_stopped_goes_on(tiny_model, tmp_path, monkeypatch):
    source, out, write, count = tiny_model("qwen3_moe"), tmp_path / "hf", conversion.write_file, 0

    def fail(path, *args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(path, *args, **options)

    monkeypatch.setattr(conversion, "write_file", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(out), max_shard_size=100_000)
    with pytest.raises(CheckpointError, match="did not end; run the same"):
        manifest.verify(str(out))
    first, second = sorted(out.glob("*.safetensors"))
    damaged = bytearray(second.read_bytes())
    damaged[-1] ^= 1
    second.write_bytes(damaged)
    before = first.stat().st_mtime_ns
    made = convert(source, str(out), max_shard_size=100_000)
    assert made.kept == 1 and first.stat().st_mtime_ns == before
    equal(tensors_of(out), tensors_of(source))
    manifest.verify(str(out))


def test_what_is_read_back_must_be_what_was_written(tiny_model, tmp_path, monkeypatch):
    write = conversion.write_file

    def fail(path, *args, **options):
        digest = write(path, *args, **options)
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
        return digest

    monkeypatch.setattr(conversion, "write_file", fail)
    with pytest.raises(CheckpointError, match="does not read as it was written"):
        convert(tiny_model("mixtral"), str(tmp_path / "hf"))


def test_a_changed_file_is_named(tiny_model, tmp_path):
    convert(tiny_model("mixtral"), str(tmp_path))
    manifest.verify(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)model.safetensors cannot be read.*config.json has 2 bytes, not"):
        manifest.verify(str(tmp_path))


# What is refused.


def test_folders_that_hold_something_else(tiny_model, tmp_path):
    source = tiny_model("mixtral")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files: choose an empty folder, or --force"):
        convert(source, str(tmp_path))
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        convert(source, source)
    with pytest.raises(ConfigError, match="is a file"):
        convert(source, str(tmp_path / "notes.txt"))
    convert(source, str(tmp_path), force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds another conversion"):
        convert(source, str(tmp_path), dtype="float16")


def test_no_room(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SPARE", 1 << 60)
    with pytest.raises(ConfigError, match="are to be written"):
        convert(tiny_model("mixtral"), str(tmp_path))


def test_numbers_that_are_none_are_not_converted(tiny_model, tmp_path, cpu_library):
    source = tmp_path / "damaged"
    shutil.copytree(tiny_model("qwen3_moe"), source)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    tensors[name][2, 5] = float("nan")
    unused = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[unused] = torch.full((4,), float("inf"))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for format in ("hf", "packed"):
        ran = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / format), "--format", format])
        assert ran.exit_code == 1
        assert "NaN or infinity" in str(ran.exception) and "--allow-nonfinite" in str(ran.exception)
        assert "layer 1, expert 3" in str(ran.exception) and "[2, 5]" in str(ran.exception)
        assert not list((tmp_path / format).glob("model*"))
        convert(str(source), str(tmp_path / f"{format}-all"), format=format, allow_nonfinite=True)
    assert tensors_of(tmp_path / "hf-all")[name].isnan().sum() == 1
    tensors[name][2, 5] = 0.0  # what is left is in a buffer that no model computes with
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), str(tmp_path / "sound"))
    assert tensors_of(tmp_path / "sound")[unused].isinf().all()


def test_a_dtype_that_is_too_narrow_for_a_weight(tiny_model, tmp_path):
    source = tmp_path / "large"
    shutil.copytree(tiny_model("qwen3_moe"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][1, 2] = 1e6
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), str(tmp_path / "bf16"), dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"large as float16: .*too narrow(.|\n)*lm_head.weight.*\[1, 2\]"):
        convert(str(source), str(tmp_path / "fp16"), dtype="float16")


def test_what_does_not_fill_its_model_is_not_converted(tiny_model, tmp_path):
    tensors = tensors_of(tiny_model("mixtral"))
    tensors.pop("model.layers.1.block_sparse_moe.experts.2.w1.weight")
    save(tiny_model("mixtral"), tmp_path / "broken", tensors, {})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.2.gate.weight"):
        convert(str(tmp_path / "broken"), str(tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


def test_whole_numbers_are_no_weights(tiny_model, tmp_path):
    source, out = tmp_path / "whole", tmp_path / "out"
    shutil.copytree(tiny_model("qwen3_moe"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].int()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for use in (lambda: convert(str(source), str(out)), lambda: convert(str(source), str(out), format="packed")):
        with pytest.raises(CheckpointError, match=r"dtypes that are not read \(I32; for instance model.norm.weight"):
            use()
    proof = verify(str(source))
    assert proof.failed is not None and proof.failed.number == 0 and "I32" in proof.failed.summary


def test_rows_of_no_parameter_are_not_made_up():
    rules = packed("qkv.weight", "q.weight", "k.weight")
    assert list(assemblies({"q.weight": (4, 2), "k.weight": (2, 2)}, rules)) == ["qkv.weight"]
    with pytest.raises(ConfigError, match="no rule of this architecture says where v.weight"):
        assemblies({"v.weight": (2, 2)}, rules)


def test_interleaved_and_transposed_parts_go_back():
    """What `View.take` takes out of a tensor, `assemble` puts back."""
    whole = torch.arange(48.0).view(4, 12)
    views = {"gate": View((4, 12), slice(0, 12, 2), True), "up": View((4, 12), slice(1, 12, 2), True)}
    places = {name: Place("x", (), (6, 4), view) for name, view in views.items()}
    taken = {name: view.take(whole) for name, view in views.items()}
    assembly = Assembly((4, 12), tuple(places.items()))
    assert torch.equal(assemble(assembly, torch.float32, taken.__getitem__), whole)
    rows = {"a": View((12,), None, False, (0, 1, 3)), "b": View((12,), None, False, (1, 2, 3))}
    vector = torch.arange(12.0)
    taken = {name: view.take(vector) for name, view in rows.items()}
    assembly = Assembly((12,), tuple((name, Place("x", (), (12,), view)) for name, view in rows.items()))
    assert torch.equal(assemble(assembly, torch.float32, taken.__getitem__), vector)


# The command, and the names.


@pytest.mark.parametrize("verb", ["convert", "convert_to_vllm_format"])
def test_the_command(tiny_model, tmp_path, verb):
    done = CliRunner().invoke(cli, [verb, tiny_model("mixtral"), str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["files"] == 1
    assert read_header(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_names_are_those_that_transformers_saves(family):
    architecture, names = names_of(family)
    assert saved_names(architecture) == set(names), "run tools/make_spellings.py"


def test_every_architecture_of_ours_has_its_names():
    builtin = {name for name in ModelRegistry.get_supported_archs() if saved_names(name)}
    assert len(builtin) >= 60
    assert assemblies(
        {"norm.weight": (4,)},
        [rename("a.norm.weight", "norm.weight"), rename("b.norm.weight", "norm.weight")],
        {"b.norm.weight"},
    ).keys() == {"b.norm.weight"}
