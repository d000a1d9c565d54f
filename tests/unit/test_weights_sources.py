"""Reading checkpoints: formats, dtypes, and every way in which files are damaged."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.stored import part_range
from moesaic.weights.loader import fill_dummy, load_weights
from moesaic.weights.rules import rename, tied
from moesaic.weights.sources import open_source

RULES = [rename("{n}.weight", "{n}.weight"), tied("head.weight", "embed.weight")]


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, 5, generator=generator) for name in ("a.weight", "b.weight", "c.weight")}


def write_shards(folder, state, index=True):
    """One tensor a shard, with an index."""
    names = {}
    for i, (name, tensor) in enumerate(state.items()):
        names[name] = f"model-{i}.safetensors"
        save_file({name: tensor}, folder / names[name])
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def read_all(folder, load_format="auto"):
    source = open_source(str(folder), load_format)
    out = {name: torch.empty(info.shape) for name, info in source.tensors.items()}
    for name, into in out.items():
        source.read(name, (), into)
    return out


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", ["single", "indexed", "loose", "odd name"])
def test_layouts_of_safetensors(tmp_path, state, layout):
    if layout == "single":
        save_file(state, tmp_path / "model.safetensors")
    elif layout == "odd name":
        save_file(state, tmp_path / "my-finetune.safetensors")
    else:
        write_shards(tmp_path, state, index=layout == "indexed")
    assert equal(read_all(tmp_path), state)


@pytest.mark.parametrize("layout", ["single", "indexed", "before torch 1.6"])
def test_layouts_of_bin(tmp_path, state, layout):
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    if layout == "indexed":
        names = {name: f"pytorch_model-{i}.bin" for i, name in enumerate(state)}
        for name, file in names.items():
            torch.save({name: state[name]}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        zipped = layout == "single"
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert equal(read_all(tmp_path), state)
    assert equal(read_all(tmp_path, "bin"), state)


def test_auto_prefers_safetensors(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert equal(read_all(tmp_path), state)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_dtypes_are_converted(tmp_path, state, stored, wanted, kind):
    stored_state = {name: tensor.to(stored) for name, tensor in state.items()}
    if kind == "bin":
        torch.save(stored_state, tmp_path / "pytorch_model.bin")
    else:
        save_file(stored_state, tmp_path / "model.safetensors")
    parameters = {name: torch.empty(6, 5, dtype=wanted) for name in state}
    load_weights(parameters, RULES, open_source(str(tmp_path), "auto"), str(tmp_path))
    assert equal(parameters, {name: tensor.to(wanted) for name, tensor in stored_state.items()})


def test_parts_are_read_where_they_lie(tmp_path):
    stacked = torch.arange(4 * 6 * 5, dtype=torch.float32).view(4, 6, 5)
    save_file({"x": stacked}, tmp_path / "model.safetensors")
    source = open_source(str(tmp_path), "auto")
    for index in [(), (2,), (3, slice(3, 6)), (slice(1, 3),), (1, 4)]:
        expected = stacked[index]
        into = torch.empty_like(expected)
        source.read("x", index, into)
        assert torch.equal(into, expected), index
        strided = torch.zeros(*expected.shape, 2)[..., 0]  # not contiguous: by way of a temporary
        source.read("x", index, strided)
        assert torch.equal(strided, expected), index
    assert part_range((4, 6, 5), (2, slice(3, 6))) == (2 * 30 + 15, (3, 5))


def test_quantised_dtypes_are_refused(tmp_path):
    save_file({"a.weight": torch.zeros(6, 5, dtype=torch.int8)}, tmp_path / "model.safetensors")
    source = open_source(str(tmp_path), "auto")
    with pytest.raises(CheckpointError, match=r"1 tensors have dtypes that are not read \(I8; for instance a.weight"):
        load_weights({"a.weight": torch.empty(6, 5)}, RULES, source, str(tmp_path))


def test_a_tied_copy_must_be_equal(tmp_path):
    embed = torch.randn(4, 3)
    parameters = {"embed.weight": torch.empty(4, 3)}
    for head in (embed, embed + 1):
        save_file({"embed.weight": embed, "head.weight": head.clone()}, tmp_path / "model.safetensors")
        source = open_source(str(tmp_path), "auto")
        if head is embed:
            load_weights(parameters, RULES, source, str(tmp_path))
        else:
            with pytest.raises(CheckpointError, match="ties head.weight to embed.weight, but the checkpoint"):
                load_weights(parameters, RULES, source, str(tmp_path))


# Damage.


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no weights as .*safetensors or bin.*it holds: config.json"):
        open_source(str(tmp_path), "auto")
    with pytest.raises(CheckpointError, match="no weights as bin"):
        open_source(str(tmp_path), "bin")


def test_missing_shards_are_all_named(tmp_path, state):
    write_shards(tmp_path, state)
    (tmp_path / "model-0.safetensors").unlink()
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names 3 shards, 2 of them missing: model-0.safetensors, model-2.saf"):
        open_source(str(tmp_path), "auto")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{}"])
def test_damaged_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json (is damaged|names no shards)"):
        open_source(str(tmp_path), "auto")


def test_truncated_shard_gives_the_numbers(tmp_path, state):
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=f"describes {len(whole)} bytes, the file has {len(whole) - 100} "):
        open_source(str(tmp_path), "auto")
    for cut in (0, 5, 20):
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
            open_source(str(tmp_path), "auto")


def test_tensors_that_lie_over_each_other_are_refused(tmp_path):
    """As safetensors' own library does: `b` begins within `a`, the same bytes stand for two tensors, or a small one
    lies in a large one."""
    file = tmp_path / "model.safetensors"

    def write(*places):
        file.write_bytes(
            header_file(
                {
                    name: {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}
                    for name, (start, stop) in zip("abc", places, strict=False)
                }
            )
        )

    for places in (((0, 32), (28, 64)), ((0, 32), (0, 32)), ((0, 64), (8, 12), (32, 64))):
        write(*places)
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: .* tensors a and b over each other"):
            open_source(str(tmp_path), "auto")
        with pytest.raises(SafetensorError):
            load_file(file)
    write((0, 32), (32, 32), (32, 64))  # one without elements has no bytes to share
    assert list(open_source(str(tmp_path), "auto").tensors) == ["a", "b", "c"]


def header_file(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "header",
    [
        b"{nope",
        b"[]",
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
        {"x": 3},
    ],
)
def test_damaged_header(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(header_file(header))
    with pytest.raises(CheckpointError, match=r"header is damaged|unknown dtype Q9"):
        open_source(str(tmp_path), "auto")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer_is_recognised(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_source(str(tmp_path), "auto")


def test_the_same_tensor_in_two_shards(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    save_file({"b.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor b.weight is in .*a.safetensors and again in .*b.safetensors"):
        open_source(str(tmp_path), "auto")


class Evil:
    """What a malicious .bin would carry."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("damage", ["truncated", "text", "nested", "code"])
def test_damaged_bin(tmp_path, state, damage, capsys):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"nested": {"x": 1}, "code": Evil()}.get(damage, state), file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    if damage == "text":
        file.write_text("hello")
    with pytest.raises(CheckpointError, match=r"cannot read .*pytorch_model.bin: "):
        open_source(str(tmp_path), "auto")
    assert "executed" not in capsys.readouterr().out


# Dummy weights, and memory.


def test_dummy_weights_depend_on_seed_and_name_alone():
    names = ["x.weight", "layers.0.attention_norm.weight", "y.weight"]
    first, again, other = ({name: torch.empty(50, 40) for name in order} for order in (names, names[::-1], names))
    fill_dummy(first, seed=1)
    fill_dummy(again, seed=1)
    fill_dummy(other, seed=2)
    assert equal(first, {name: again[name] for name in names})
    assert not torch.equal(first["x.weight"], other["x.weight"])
    assert not torch.equal(first["x.weight"], first["y.weight"])
    assert torch.equal(first[names[1]], torch.ones(50, 40))
    assert 0.015 < first["x.weight"].std() < 0.025


PEAK = """
import resource, sys, torch
from moesaic.weights.loader import load_weights
from moesaic.weights.rules import rename
from moesaic.weights.sources import open_source
rows, columns, count, dtype = 2048, 1024, 24, getattr(torch, sys.argv[2])
torch.ones(1000, 1000) @ torch.ones(1000, 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parameters = {f"{chr(97 + i)}.weight": torch.empty(rows, columns, dtype=dtype) for i in range(count)}
load_weights(parameters, [rename("{n}.weight", "{n}.weight")], open_source(sys.argv[1], "auto"), sys.argv[1])
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
model = sum(p.nbytes for p in parameters.values())
print(model, peak, parameters["c.weight"].nbytes)
assert float(parameters["c.weight"][0, 0]) == 2.0
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_model_and_one_tensor_of_memory(tmp_path, dtype):
    """200 MB in shards, as stored and converted; what Python and torch take beside it is bounded generously."""
    state = {f"{chr(97 + i)}.weight": torch.full((2048, 1024), float(i)) for i in range(24)}
    for i in range(0, 24, 6):
        save_file(dict(list(state.items())[i : i + 6]), tmp_path / f"model-{i}.safetensors")
    del state
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), dtype], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    model, peak, tensor = map(int, run.stdout.split())
    assert model == 24 * tensor
    stored_tensor = 2048 * 1024 * 4
    assert peak < model + stored_tensor + (8 << 20), f"model {model >> 20} MiB, peak {peak >> 20} MiB"


def test_a_whole_model_loads_by_parts_of_fused_tensors(tmp_path):
    """The fused tensors of a real family, read expert by expert, equal what safetensors itself reads."""
    from tests.parity.driver import load
    from tests.tiny_models import make_tiny

    make_tiny("granitemoe", tmp_path)
    views = dict(load(tmp_path, backend="reference").named_views())
    stored = load_file(tmp_path / "model.safetensors")
    fused = stored["model.layers.1.block_sparse_moe.input_linear.weight"]
    half = fused.shape[1] // 2
    assert torch.equal(views["layers.1.mlp.experts.5.gate.weight"], fused[5, :half])
    assert torch.equal(views["layers.1.mlp.experts.5.up.weight"], fused[5, half:])
    assert sum(view.numel() for view in views.values()) == sum(tensor.numel() for tensor in stored.values())
