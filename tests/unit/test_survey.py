"""What lies in a folder, from headers alone: names as patterns, whatever is damaged, absent or foreign."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from moesaic.adapt.names import group_names, listed, pattern_of, ranges
from moesaic.adapt.survey import survey
from moesaic.core.errors import ConfigError
from moesaic.weights.tensors import TensorInfo


def patterns(*names):
    return {group.pattern: len(group) for group in group_names({n: TensorInfo("F32", (2,), "a") for n in names})}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.0.mlp.experts.3.w1.weight"], "model.layers.{l}.mlp.experts.{e}.w1.weight"),
        (["layer_0.expert_3.up_proj.weight"], "layer_{l}.expert_{e}.up_proj.weight"),
        (["expert_3.q_proj.weight"], "expert_{e}.q_proj.weight"),
        (["transformer.h.0.mlp.c_fc.weight"], "transformer.h.{l}.mlp.c_fc.weight"),
        (["blk.4.ffn_gate.0.weight", "blk.4.ffn_gate.1.weight"], "blk.{l}.ffn_gate.{e}.weight"),
        (["decoder.layers.0.mlp.experts.linear_fc1.weight7"], "decoder.layers.{l}.mlp.experts.linear_fc1.weight{e}"),
        (["model.layers.0.linear_attn.conv1d.weight"], "model.layers.{l}.linear_attn.conv1d.weight"),
        (["blocks.0.norm_1.weight"], "blocks.{l}.norm_1.weight"),
        (["0.attn.wq"], "{l}.attn.wq"),
        (["layers.2.blocks.1.moe.5.down"], "layers.{l}.blocks.{n}.moe.{e}.down"),
    ],
)
def test_numbers_that_count_become_placeholders(names, expected):
    assert patterns(*names) == {expected: len(names)}


def test_digits_of_words_tell_groups_apart():
    names = [f"layers.{la}.experts.{e}.w{w}" for la in range(2) for e in range(3) for w in (1, 2, 3)]
    assert patterns(*names) == {f"layers.{{l}}.experts.{{e}}.w{w}": 6 for w in (1, 2, 3)}


def test_a_group_knows_its_numbers_shapes_and_dtypes():
    tensors = {f"layers.{la}.experts.{e}.up": TensorInfo("BF16", (4, 2), "a") for la in (1, 3) for e in range(4)}
    tensors["layers.1.experts.0.up"] = TensorInfo("F32", (2, 4), "a")
    (group,) = group_names(tensors)
    assert (group.layers, group.experts, len(group)) == ((1, 3), (0, 1, 2, 3), 8)
    assert group.shapes == {(4, 2): 7, (2, 4): 1} and group.dtypes == {"BF16": 7, "F32": 1}
    assert (group.shape, group.numel, group.nbytes) == ((4, 2), 64, 7 * 16 + 32)
    assert group.parent == "layers.{l}.experts.{e}"


def test_a_name_by_itself_and_words_for_many():
    assert pattern_of("model.layers.7.mlp.gate.weight") == "model.layers.{l}.mlp.gate.weight"
    assert ranges([7, 0, 1, 2, 9, 8]) == "0..2, 7..9"
    assert [listed([]), listed([3]), listed([3, 7])] == ["", "3", "3 and 7"]
    assert listed(range(9), 3) == "0, 1, 2 and 6 more"


def write(folder, num_layers=2, config=True, sharded=False):
    folder.mkdir(exist_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps({"architectures": ["Odd"], "hidden_size": 4}))
    shards = {}
    for layer in range(num_layers):
        tensors = {f"layers.{layer}.experts.{e}.up": torch.zeros(6, 4) for e in range(3)}
        name = f"model-{layer}.safetensors" if sharded else "model.safetensors"
        shards.setdefault(name, {}).update(tensors)
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if sharded:
        index = {"weight_map": {t: name for name, tensors in shards.items() for t in tensors}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_whole_checkpoint(tmp_path):
    found = survey(write(tmp_path / "c", sharded=True))
    assert (found.kind, found.naming, found.quantization, found.problems) == ("safetensors", "hf", "", ())
    assert found.files == ("model-0.safetensors", "model-1.safetensors")
    assert found.config["hidden_size"] == 4 and found.nbytes == 6 * 6 * 4 * 4
    assert [g.pattern for g in found.groups] == ["layers.{l}.experts.{e}.up"]
    assert found.weights is found.tensors


def test_no_config_is_a_problem_and_no_end(tmp_path):
    found = survey(write(tmp_path / "c", config=False))
    assert found.config is None and len(found.tensors) == 6
    assert "holds no config.json" in str(found.problems[0])


def test_a_truncated_shard_is_named_and_what_it_lacks(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    whole = (folder / "model-1.safetensors").read_bytes()
    (folder / "model-1.safetensors").write_bytes(whole[:-10])
    found = survey(folder)
    assert len(found.tensors) == 6  # its header is still there
    (problem,) = found.problems
    assert problem.where == "model-1.safetensors"
    assert "10 missing" in problem.what and "layers.1.experts.2.up" in problem.what
    (folder / "model-1.safetensors").write_bytes(whole[:5])
    found = survey(folder)
    assert len(found.tensors) == 3 and any(p.where == "model-1.safetensors" for p in found.problems)


def test_tensors_that_lie_over_each_other_are_named(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    file = folder / "model-1.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = sorted(header.keys() - {"__metadata__"})[:2]
    header[second] |= {"shape": header[first]["shape"], "data_offsets": header[first]["data_offsets"]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    (problem,) = survey(folder).problems
    assert problem.where == file.name and f"{first} and {second} over each other" in problem.what
    assert "Cut off" not in problem.what


def test_an_absent_shard_is_named_with_its_layers(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    (folder / "model-1.safetensors").unlink()
    found = survey(folder)
    assert len(found.tensors) == 3
    assert "names it for 3 tensors, of layers 1" in str([p for p in found.problems if p.where == "model-1.safetensors"])


def test_a_pointer_a_damaged_index_and_a_tensor_twice(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    (folder / "model-0.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert any("git lfs pull" in str(p) for p in survey(folder).problems)
    (folder / "model.safetensors.index.json").write_text("{")
    assert any("index.json" in str(p) and "damaged" in str(p) for p in survey(folder).problems)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-0.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    found = survey(folder)
    assert any("model-0.safetensors" in str(p) and "layers.1.experts.0.up" in str(p) for p in found.problems)


def test_what_is_foreign_is_named(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "flax_model.msgpack").write_bytes(b"x")
    (folder / "__0_0.distcp").write_bytes(b"x")
    found = survey(folder)
    assert not found.tensors and found.kind == ""
    assert "Flax" in str(found.problems) and "torch distributed checkpoint" in str(found.problems)
    (folder / "flax_model.msgpack").unlink(), (folder / "__0_0.distcp").unlink()
    assert "holds no weights" in str(survey(folder).problems)


def test_a_method_that_is_not_decoded_is_named(tmp_path):
    folder = write(tmp_path / "c")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "odd"}}))
    found = survey(folder)
    assert found.quantization == "odd" and len(found.tensors) == 6 and "odd" in str(found.problems)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="neither a folder here nor a Hugging Face id"):
        survey(tmp_path / "none")


def test_without_torch(embedded_path):
    code = (
        "import sys; from moesaic.adapt.survey import survey; assert survey(sys.argv[1]).groups; "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, embedded_path], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
