"""Checkpoints in the files and layouts of other programs: the same logits as transformers' from the model that was
written out."""

import os
import re

import pytest
import torch

from moesaic.adapt.survey import survey
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.weights.sources import open_source
from tests import layouts
from tests.parity.driver import Driver, load, relative_difference
from tests.tiny_models import tiny_reference

TOKENS = [3, 17, 99, 4, 4, 50, 77, 1, 120]


@pytest.fixture
def made(tmp_path):
    """Makes a tiny model: (the model, its weights by the hub's names), its config in the folder."""

    def make(family, **overrides):
        model = tiny_reference(family, **overrides)
        return model, layouts.write_config(model, tmp_path)

    return make


def check(model, folder, **options):
    ours = Driver(load(folder, **options)).run({0: TOKENS}, [100])[0]
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0]
    assert relative_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("rest", ["safetensors", "bin", "loose"])
@pytest.mark.parametrize("leaf", ["tensor", "dict", "safetensors"])
@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_directories(made, tmp_path, family, leaf, rest):
    model, state = made(family)
    layouts.write_directories(state, tmp_path, leaf, rest)
    check(model, tmp_path)


ARCH = """
from moesaic.models.archs.olmoe import spec
from moesaic.weights.rules import experts, rename

ARCHITECTURE = "FoldersForCausalLM"
RULES = [
    rename("embed_tokens.weight", "embed.weight"),
    rename("head.weight", "lm_head.weight"),
    rename("final_norm.weight", "norm.weight"),
    *(rename(f"layer_{{l}}.attn.{n}.weight", f"layers.{{l}}.attention.{n}.weight") for n in "qkvo"),
    *(rename(f"layer_{{l}}.attn.{n}_norm.weight", f"layers.{{l}}.attention.{n}_norm.weight") for n in "qk"),
    rename("layer_{l}.norm_1.weight", "layers.{l}.attention_norm.weight"),
    rename("layer_{l}.norm_2.weight", "layers.{l}.ffn_norm.weight"),
    rename("layer_{l}.router.weight", "layers.{l}.mlp.router.weight"),
    *experts("layer_{l}.expert_{e}", gate="gate_proj", up="up_proj", down="down_proj"),
]
"""
RENAMED = {
    "model.embed_tokens": "embed_tokens", "lm_head": "head", "model.norm": "final_norm", "self_attn.": "attn.",
    "_proj.weight": ".weight", "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "mlp.gate": "router",
}  # fmt: skip


def test_names_that_are_paths_fit_the_rules_of_a_drafted_architecture(made, tmp_path):
    """`layer_0/expert_3/up_proj.bin`: layer and expert are numbers in a template as in any other name."""
    model, state = made("olmoe")
    for name, tensor in state.items():
        path = re.sub(r"model\.layers\.(\d+)\.", r"layer_\1/", name)
        if "experts" in path:
            path = re.sub(r"mlp\.experts\.(\d+)\.", r"expert_\1/", path).removesuffix(".weight")
        else:
            for theirs, ours in RENAMED.items():
                path = path.replace(theirs, ours)
            path = path.removesuffix(".weight").replace(".", "/")
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensor, tmp_path / f"{path}.bin")
    assert (tmp_path / "layer_2" / "expert_7" / "up_proj.bin").is_file()
    (tmp_path / "arch.py").write_text(ARCH)
    check(model, tmp_path, arch=str(tmp_path / "arch.py"))


CHUNKED = {"chunks": True, "compression": "gzip", "shuffle": True}


@pytest.mark.parametrize(
    ("dtype", "files", "how"), [("float32", 1, CHUNKED), ("bfloat16", 3, {}), ("bfloat16", 1, CHUNKED)]
)
def test_hdf5(made, tmp_path, dtype, files, how):
    model, state = made("qwen3_moe")
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    layouts.write_hdf5(state, tmp_path, files, **how)
    check(model, tmp_path)


@pytest.mark.parametrize("tag", ["global_step10", None])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_deepspeed(made, tmp_path, family, tag):
    overrides = {"mlp_only_layers": [0]} if family == "qwen3_moe" else {}
    model, state = made(family, **overrides)
    layouts.write_deepspeed(state, tmp_path, tag)
    check(model, tmp_path)
    assert open_source(str(tmp_path)).naming == "hf"


MEGATRON = {
    "one rank": ("mixtral", {}, {}),
    "plain layers": ("mixtral", {}, {"grouped": False, "engine": False}),
    "tied": ("mixtral", {"tie": True}, {"pad": 8}),
    "step": ("qwen3_moe", {"mlp_only_layers": [1]}, {"step": 120}),
    "tensor-parallel": ("qwen3_moe", {"mlp_only_layers": [1]}, {"tp": 2, "pad": 12}),
    "expert-parallel": ("mixtral", {}, {"ep": 4}),
    "expert-parallel, one by one": ("mixtral", {}, {"ep": 2, "grouped": False}),
    "pipeline": ("mixtral", {}, {"pp": 3}),
    "pipeline of all": ("qwen3_moe", {"mlp_only_layers": [2]}, {"tp": 2, "pp": 3, "ep": 2, "pad": 4, "step": 5}),
    "tensor- and expert-parallel": ("mixtral", {}, {"tp": 2, "ep": 2}),
    "shared expert and biases": ("qwen2_moe", {}, {"tp": 2}),
    "correction": ("glm4_moe", {}, {"ep": 2}),
}


@pytest.mark.parametrize("case", MEGATRON)
def test_megatron(made, tmp_path, case):
    family, overrides, how = MEGATRON[case]
    model, state = made(family, **overrides)
    layouts.write_megatron(state, model.config, tmp_path, **how)
    check(model, tmp_path)
    assert open_source(str(tmp_path)).naming == "megatron"


# What is missing, damaged or not read.


def test_missing_ranks_are_named(made, tmp_path):
    model, state = made("mixtral")
    layouts.write_megatron(state, model.config, tmp_path, tp=2, ep=2)
    os.unlink(tmp_path / "mp_rank_01_000" / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match=r"lacks the files of 1 ranks: mp_rank_01_000/model_optim_rng\.pt$"):
        open_source(str(tmp_path))


def test_missing_experts_are_named(made, tmp_path):
    _, state = made("mixtral")
    layouts.write_deepspeed(state, tmp_path, None)
    os.unlink(tmp_path / "layer_1_expert_3_mp_rank_00_model_states.pt")
    os.unlink(tmp_path / "layer_2_expert_7_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="lacks 2 files: layer_1_expert_3_mp_rank_00.*layer_2_expert_7_mp"):
        open_source(str(tmp_path))
    layouts.write_deepspeed(state, tmp_path, None)
    os.unlink(tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="lacks 1 files: mp_rank_00_model_states.pt"):
        open_source(str(tmp_path))


def test_a_missing_file_of_an_expert_is_told_by_name(made, tmp_path):
    _, state = made("olmoe")
    layouts.write_directories(state, tmp_path, "tensor", "bin")
    os.unlink(tmp_path / "model/layers/1/mlp/experts/4/up_proj.bin")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.4.up.weight: expected as model.layers.1"):
        load(tmp_path)


@pytest.mark.parametrize("what", ["model_optim_rng.pt", "missing step", "interleaved", "old"])
def test_what_is_wrong_with_megatron(made, tmp_path, what):
    model, state = made("mixtral")
    layouts.write_megatron(state, model.config, tmp_path, step=3)
    file = tmp_path / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt"
    if what == "missing step":
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
        match = "names the step '4', but there is no folder iter_0000004"
    elif what == "model_optim_rng.pt":
        file.write_bytes(file.read_bytes()[:-300])
        match = "cannot read .*mp_rank_00/model_optim_rng.pt: truncated"
    else:
        names = {"interleaved": "model0", "old": "model"}
        torch.save({names[what]: {"language_model.encoder.layers.0.mlp.weight": torch.ones(1)}}, file)
        match = "holds no decoder.layers"
    with pytest.raises((CheckpointError, UnsupportedError), match=match):
        open_source(str(tmp_path))


def test_ranks_of_different_shapes(made, tmp_path):
    model, state = made("mixtral")
    layouts.write_megatron(state, model.config, tmp_path, tp=2)
    file = tmp_path / "mp_rank_01" / "model_optim_rng.pt"
    holds = torch.load(file, weights_only=False)["model"]
    torch.save({"model": {**holds, "decoder.final_layernorm.weight": torch.ones(3)}}, file)
    with pytest.raises(CheckpointError, match="hold decoder.final_layernorm.weight in several shapes"):
        open_source(str(tmp_path))
    torch.save({"model": {**holds, "output_layer.weight": torch.ones(3, 3)}}, file)
    with pytest.raises(CheckpointError, match="output_layer.weight cannot be put together"):
        open_source(str(tmp_path))


def test_a_vocabulary_that_is_too_short_is_told(made, tmp_path):
    model, state = made("mixtral")
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:-1]
    layouts.write_megatron(state, model.config, tmp_path)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight: is \[127, 64\], the config asks for \[128"):
        load(tmp_path)


def test_what_megatron_does_not_say_is_refused(made, tmp_path):
    model, state = made("olmoe")
    layouts.write_megatron(state, model.config, tmp_path)
    with pytest.raises(UnsupportedError, match="Megatron-core's attention has no such norms"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["iter_0000001/__0_0.distcp", "__0_0.distcp", "decoder.layers.mlp/.zarray"])
def test_distributed_checkpoints_are_refused_by_name(made, tmp_path, file):
    made("mixtral")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"is a distributed checkpoint \((zarr|torch_dist, .distcp files)\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "ZeRO stage 3"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "split over 2 tensor-parallel ranks"),
        (["mp_rank_01_model_states.pt"], "lacks 1 files: mp_rank_00_model_states.pt"),
    ],
)
def test_what_is_wrong_with_deepspeed(tmp_path, files, match):
    for file in files:
        torch.save({"module": {"a.weight": torch.ones(2)}}, tmp_path / file)
    with pytest.raises((CheckpointError, ConfigError), match=match):
        open_source(str(tmp_path))


@pytest.mark.parametrize("leaf", ["tensor", "dict"])
def test_a_damaged_file_hides_no_other(made, tmp_path, leaf):
    _, state = made("olmoe")
    layouts.write_directories(state, tmp_path, leaf, "bin")
    whole = survey(tmp_path)
    assert not whole.problems and len(whole.tensors) == len(state)
    file = next((tmp_path / "model/layers/2/mlp/experts/5").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "training_args.bin").write_bytes(b"x")
    found = survey(tmp_path)
    assert [problem.where for problem in found.problems] == [os.path.relpath(file, tmp_path)]
    lost = whole.tensors.keys() - found.tensors.keys()
    assert lost and all(name.startswith("model.layers.2.mlp.experts.5.") for name in lost)
    assert found.tensors.keys() < whole.tensors.keys()
