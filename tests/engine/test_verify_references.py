"""References of other kinds: the checkpoint's own code, and quantised checkpoints as transformers decodes them."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from moesaic.adapt import verify
from moesaic.adapt.proof.reference_hf import load_hf
from moesaic.core.errors import CheckpointError
from tests.quantised import fp8, gptq, mxfp4, rewrite, save

# A model of its own, in the folder, whose experts are modules by themselves.
MODELING = """
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP

open({ran!r}, "w").close()


class MineConfig(Qwen3MoeConfig):
    model_type = "mine"


class MineExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        mlps = [Qwen3MoeMLP(config, intermediate_size=config.moe_intermediate_size) for _ in range(config.num_experts)]
        self.experts = nn.ModuleList(mlps)

    def forward(self, x):
        weights, ids = self.gate(x).float().softmax(-1).topk(self.top_k)
        if {renormalised}:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + expert(x) * (weights * (ids == e)).sum(-1, keepdim=True)
        return out


class MineForCausalLM(Qwen3MoeForCausalLM):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = MineExperts(config)
        self.post_init()
"""
ARCH = """
from moesaic.models.archs.qwen3_moe import RULES, spec
ARCHITECTURE = "MineForCausalLM"
"""


@pytest.fixture
def own_code(tiny_model, tmp_path, monkeypatch):
    """Makes a checkpoint with modelling code of its own; (its folder, the architecture's file, what that code leaves
    where it ran)."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(renormalised):
        mapped = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
        change = {
            "architectures": ["MineForCausalLM"],
            "model_type": "mine",
            "auto_map": mapped,
            "norm_topk_prob": True,
        }
        source = tiny_model("qwen3_moe")
        folder = save(source, tmp_path / "model", load_file(f"{source}/model.safetensors"), change)
        ran = tmp_path / "ran"
        (folder / "modeling_mine.py").write_text(MODELING.format(ran=str(ran), renormalised=renormalised))
        (tmp_path / "arch.py").write_text(ARCH)
        return str(folder), str(tmp_path / "arch.py"), ran

    return make


def test_the_checkpoints_own_code_is_the_reference(own_code):
    folder, arch, ran = own_code(True)
    proof = verify(folder, "hf", arch=arch, trust_remote_code=True)
    assert ran.exists() and proof.proven, proof.failed
    assert "MineForCausalLM in fp32" in proof.reference and "shares nothing with the engine" in proof.reference
    assert [stage.status for stage in proof.stages] == ["passed"] * 5


def test_what_the_checkpoints_own_code_computes_counts(own_code):
    """Its code does not renormalise, whatever the config says; that is found as the cause."""
    folder, arch, _ = own_code(False)
    proof = verify(folder, "hf", arch=arch, trust_remote_code=True)
    assert not proof.proven and proof.stages[-1].number == 3
    assert any("not renormalised" in cause.what for cause in proof.causes)


def test_own_code_runs_only_where_it_is_trusted(own_code):
    folder, arch, ran = own_code(True)
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        verify(folder, "hf", arch=arch)
    proof = verify(folder, arch=arch)
    assert proof.limits == ("by our own plain model alone",) and not ran.exists()


def test_fp8_as_transformers_decodes_it(tiny_model, tmp_path):
    """It does so with the package `accelerate` alone; without it, that is what is said."""
    source = tiny_model("qwen3_moe", hidden_size=128, moe_intermediate_size=128, num_hidden_layers=2, num_experts=4)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
    rewrite(source, tmp_path, fp8(), config, lambda name: name.endswith("_proj.weight"))
    if find_spec("accelerate") is None:
        with pytest.raises(CheckpointError, match="transformers does not load .*accelerate"):
            verify(str(tmp_path / "quantised"), "hf")
        return
    proof = verify(str(tmp_path / "quantised"), "hf")
    assert proof.proven, proof.failed
    assert "shares nothing with the engine" in proof.reference


def test_mxfp4_as_transformers_decodes_it(tiny_model, tmp_path):
    source = tiny_model("gpt_oss", num_hidden_layers=2, num_local_experts=4)
    stored = {}
    for name, tensor in load_file(f"{source}/model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        made = [mxfp4(matrix)[0] for matrix in tensor.transpose(1, 2)]
        stored |= {f"{name}_{part}": torch.stack([one[part] for one in made]) for part in ("blocks", "scales")}
    save(source, tmp_path / "m", stored, {"quantization_config": {"quant_method": "mxfp4"}})
    for quantization in ("none", "auto"):
        proof = verify(str(tmp_path / "m"), "hf", quantization=quantization)
        assert proof.proven, proof.failed


def test_what_transformers_does_not_decode_without_a_gpu_is_named(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe", moe_intermediate_size=64, num_experts=4, num_hidden_layers=2)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    rewrite(source, tmp_path, gptq(), config, lambda name: name.endswith("_proj.weight"))
    with pytest.raises(CheckpointError, match="does not turn gptq weights into plain ones"):
        load_hf(str(tmp_path / "quantised"))
    assert json.loads((tmp_path / "quantised" / "config.json").read_text())["quantization_config"] == config
