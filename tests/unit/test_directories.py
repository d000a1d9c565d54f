"""What tensors are called that lie in folders of experts, and which files of a folder count."""

import logging
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from moesaic.core.errors import CheckpointError
from moesaic.weights.layouts.directories import tensor_name
from moesaic.weights.sources import open_source


@pytest.mark.parametrize(
    ("path", "key", "name"),
    [
        ("expert_0/q_proj.bin", "", "expert_0.q_proj.weight"),
        ("layer_0/expert_3/up_proj.bin", "", "layer_0.expert_3.up_proj.weight"),
        ("layers/0/experts/7/w1.pt", "", "layers.0.experts.7.w1.weight"),
        ("layer_0/router/weight.pt", "", "layer_0.router.weight"),
        ("layer_0/q_proj.bias.bin", "", "layer_0.q_proj.bias"),
        ("embed_tokens.bin", "", "embed_tokens.weight"),
        ("embed_tokens.bin", "weight", "embed_tokens.weight"),
        ("layer_0/expert_3.pt", "up_proj.weight", "layer_0.expert_3.up_proj.weight"),
        ("layer_0/expert_3/model.safetensors", "up_proj.weight", "layer_0.expert_3.up_proj.weight"),
        ("layer_0/experts.pt", "experts.3.up.weight", "layer_0.experts.3.up.weight"),
        (
            "expert_3/model.safetensors",
            "model.layers.0.mlp.experts.3.w1.weight",
            "model.layers.0.mlp.experts.3.w1.weight",
        ),
        ("base.bin", "model.norm.weight", "model.norm.weight"),
        ("model-00001-of-00002.safetensors", "norm", "norm"),
    ],
)
def test_names(path, key, name):
    assert tensor_name(path, key) == name


def test_a_folder_of_another_kind_is_no_tree(tmp_path):
    for folder in ("original", "checkpoint-500", "1_Pooling", ".layer_0"):
        (tmp_path / folder).mkdir()
        torch.save({"x": torch.ones(1)}, tmp_path / folder / "consolidated.00.pth")
    save_file({"a.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_source(str(tmp_path)).tensors) == {"a.weight"}


def test_what_is_left_alone_is_logged(tmp_path, caplog):
    save_file({"a.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"b.weight": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with caplog.at_level(logging.INFO, "moesaic"):
        assert set(open_source(str(tmp_path)).tensors) == {"a.weight"}
    assert "weights are read as safetensors; left alone: pytorch_model.bin" in caplog.text


def test_two_files_with_one_name(tmp_path):
    (tmp_path / "expert_0").mkdir()
    torch.save(torch.ones(1), tmp_path / "expert_0" / "w.bin")
    torch.save(torch.ones(1), tmp_path / "expert_0" / "w.pt")
    with pytest.raises(CheckpointError, match=r"tensor expert_0.w.weight is in .*w\.bin and again in .*w\.pt"):
        open_source(str(tmp_path))


def test_more_files_than_a_process_may_open(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    for expert in range(80):
        (tmp_path / f"expert_{expert}").mkdir()
        torch.save(torch.full((2,), float(expert)), tmp_path / f"expert_{expert}" / "w.bin")
        save_file({"b": torch.ones(2)}, tmp_path / f"expert_{expert}" / "model.safetensors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limit[1]))
    try:
        source, into = open_source(str(tmp_path)), torch.empty(2)
        for expert in range(80):
            source.read(f"expert_{expert}.w.weight", (), into)
            assert into.tolist() == [expert, expert]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize("rest", ["model.pt", "weights.bin", "base.pth", "model.safetensors", "pytorch_model.bin"])
def test_the_rest_lies_beside_the_folders(tmp_path, rest):
    (tmp_path / "layer_0").mkdir()
    torch.save(torch.ones(1), tmp_path / "layer_0" / "w.bin")
    others = {"model.norm.weight": torch.ones(2)}
    if rest.endswith(".safetensors"):
        save_file(others, tmp_path / rest)
        torch.save(others, tmp_path / "pytorch_model.bin")  # again: left alone
        torch.save(torch.ones(1), tmp_path / "head.bin")
    else:
        torch.save(others, tmp_path / rest)
    found = open_source(str(tmp_path)).tensors
    more = {"head.weight"} if rest.endswith(".safetensors") else set()
    assert set(found) == {"layer_0.w.weight", "model.norm.weight"} | more
    assert found["model.norm.weight"].file == str(tmp_path / rest)
