"""Packed checkpoints: the same bits as of weights that are packed at the start, in every precision; or refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from moesaic import LLM
from moesaic.adapt import convert, inspect
from moesaic.adapt.conversion import packed as packed_conversion
from moesaic.adapt.conversion.convert import Packing
from moesaic.core.errors import CheckpointError, ConfigError, MoesaicError, UnsupportedError
from moesaic.entrypoints.cli.main import cli
from moesaic.experts.profile_file import write_routes
from moesaic.experts.recorder import RouteRecorder, Rows
from moesaic.kernels.cpu.arena import PAGE, Arenas
from moesaic.models import load as loading
from moesaic.weights import packed_model
from moesaic.weights.containers.packed import header_bytes, read_header, read_raw
from moesaic.weights.layouts.packed import VECTORS, open_packed
from moesaic.weights.packing import packed_matrices
from tests.engine.test_quantised_checkpoints import CASES, SIZES, quantised
from tests.parity.driver import Driver, load
from tests.quantised import rewrite

pytestmark = pytest.mark.usefixtures("cpu_library")

TOKENS = [5, 17, 33, 90, 12, 77, 3, 41]


def packed(source, folder, **packing):
    convert(source, str(folder), format="packed", packing=Packing(**packing) if packing else None)
    return str(folder)


def same(left, right):
    """The same matrices, vectors and logits, to the bit; how many formats."""
    ours, theirs = (dict(packed_matrices(dict(m.named_views()))[0]) for m in (left, right))
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        assert matrix.format == theirs[name].format and torch.equal(matrix.data, theirs[name].data), name
    vectors = dict(right.named_parameters())
    assert all(torch.equal(vector, vectors[name]) for name, vector in left.named_parameters())
    logits = [Driver(model).run({0: TOKENS}, [64])[0] for model in (left, right)]
    assert torch.equal(*logits)
    return {str(matrix.format) for matrix in ours.values()}


FAMILIES = ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "jamba", "qwen3_next", "jetmoe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_load_to_the_bit(tiny_model, tmp_path, family):
    source = tiny_model(family)
    same(load(packed(source, tmp_path / "p")), load(source))


SCHEMES = {
    "none": 1, "w8a16": 2, "w4a16": 3, "w8a8": 3,
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tie", [False, True])
def test_every_precision(tiny_model, tmp_path, scheme, tie):
    source = tiny_model("qwen3_moe", tie=tie)
    formats = same(
        load(packed(source, tmp_path / "p", quantization=scheme, quantization_group_size=32)),
        load(source, quantization=scheme, quantization_group_size=32),
    )
    assert len(formats) == SCHEMES[scheme]


def test_a_dtype(tiny_model, tmp_path):
    source = tiny_model("mixtral")
    convert(source, str(tmp_path / "p"), format="packed", dtype="bfloat16")
    assert json.loads((tmp_path / "p" / "config.json").read_text())["dtype"] == "bfloat16"
    assert same(load(str(tmp_path / "p"), dtype="bfloat16"), load(source, dtype="bfloat16")) == {"bf16"}
    with pytest.raises(ConfigError, match="packed in bfloat16, not in float32: leave --dtype out"):
        load(str(tmp_path / "p"), dtype="float32")


def test_the_codes_of_a_quantised_checkpoint(tiny_model, tmp_path):
    family, quantise, config = CASES["gptq"]
    rewrite(tiny_model(family, **SIZES[family]), tmp_path, quantise, config, quantised)
    source = str(tmp_path / "quantised")
    assert "w4 in groups of 32" in same(load(packed(source, tmp_path / "p")), load(source))
    assert "quantization_config" not in json.loads((tmp_path / "p" / "config.json").read_text())


def test_hot_experts_keep_eight_bits(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe")
    (tmp_path / "hot.json").write_text('{"0": [2, 1], "1": [0]}')
    options = {"quantization": "w4a16", "quantization_config": "layers.1.attention=none"}
    made = load(packed(source, tmp_path / "p", hot_experts=str(tmp_path / "hot.json"), **options))
    hot = "layers.0.mlp.experts.1-2=w8a16,layers.1.mlp.experts.0=w8a16,layers.1.attention=none"
    same(made, load(source, quantization="w4a16", quantization_config=hot))
    kinds = {name: m.format.kind for name, m in packed_matrices(dict(made.named_views()))[0]}
    expected = {f"layers.{la}.mlp.experts.{e}.down.weight": "w8" for la, e in ((0, 1), (0, 2), (1, 0))}
    assert {n: k for n, k in kinds.items() if ".down." in n and k == "w8"} == expected
    assert kinds["layers.1.attention.q.weight"] == "f32"


def test_hot_experts_by_recorded_routes(tiny_model, tmp_path):
    """Of 8 experts the 2 that carry most weight, which are not those that are chosen most often."""
    recorder = RouteRecorder("tiny", [0, 2], [8, 8], [2, 2])
    ids = np.array([[[5, 1], [0, 7]]] * 3 + [[[3, 4], [7, 0]]], dtype=np.int16)
    weights = np.array([[[0.5, 0.1], [0.5, 0.5]]] * 3 + [[[0.9, 0.1], [0.6, 0.4]]], dtype=np.float32)
    recorder.add(Rows(ids, weights, []))
    write_routes(recorder.profile(), str(tmp_path / "routes.safetensors"))
    made = load(
        packed(
            tiny_model("qwen3_moe"),
            tmp_path / "p",
            hot_experts=str(tmp_path / "routes.safetensors"),
            quantization="w4a16",
        )
    )
    kinds = {name: m.format.kind for name, m in packed_matrices(dict(made.named_views()))[0]}
    hot = {n for n, k in kinds.items() if ".down." in n and k == "w8"}
    assert hot == {f"layers.{la}.mlp.experts.{e}.down.weight" for la, e in ((0, 5), (0, 3), (2, 7), (2, 0))}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "must hold a JSON object of layers"),
        ('{"0": ["1"]}', "at '0' it does not"),
        ('{"a": [1]}', "at 'a' it does not"),
        ("{", "is no JSON"),
        ('{"9": [1]}', "fits no weight of this model"),
    ],
)
def test_hot_experts_that_are_none(tiny_model, tmp_path, text, message):
    (tmp_path / "hot.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        packed(tiny_model("qwen3_moe"), tmp_path / "p", quantization="w4a16", hot_experts=str(tmp_path / "hot.json"))


def test_hot_experts_need_a_precision_of_the_others(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="say --quantization w4a16"):
        packed(tiny_model("qwen3_moe"), tmp_path / "p", hot_experts=str(tmp_path / "hot.json"))


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def regions(monkeypatch):
    """Matrices in many blocks of memory, and so in many regions."""
    monkeypatch.setattr(Arenas, "BLOCK", 32 << 10)


def test_several_files_and_a_conversion_that_stopped(tiny_model, tmp_path, monkeypatch, regions):
    source, out, write, count = tiny_model("qwen3_moe", tie=True), tmp_path / "p", packed_conversion.write_regions, 0

    def fail(path, *args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(path, *args, **options)

    again = {"format": "packed", "packing": Packing("w4a16"), "max_shard_size": 100_000}
    monkeypatch.setattr(packed_conversion, "write_regions", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(out), **again)
    first, second = sorted(out.glob("*.moepack"))
    with pytest.raises(CheckpointError, match=r"holds 2 of the \d+ files of a packed checkpoint \(numbers 1, 2\)"):
        open_packed(str(out))
    change(second, -1)
    before = first.stat().st_mtime_ns
    made = convert(source, str(out), **again)
    assert made.kept == 1 and first.stat().st_mtime_ns == before and made.files > 3
    assert all(path.stat().st_size % PAGE == 0 for path in out.glob("*.moepack"))
    same(load(str(out), verify_weights=True), load(source, quantization="w4a16"))


def change(path, at):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def one(tiny_model, tmp_path):
    """A packed checkpoint and its one file of matrices."""
    folder = packed(tiny_model("mixtral"), tmp_path / "p", quantization="w8a16")
    return folder, Path(folder) / "model-00001-of-00001.moepack"


def test_one_bit_is_caught_by_the_manifest(one):
    folder, path = one
    load(folder, verify_weights=True)
    change(path, os.path.getsize(path) - PAGE // 2 - 5)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001.moepack has another content: its SHA-256"):
        load(folder, verify_weights=True)


def test_weights_without_a_manifest_are_not_verified(tiny_model, tmp_path, one):
    with pytest.raises(CheckpointError, match="has no moesaic-manifest.json"):
        load(tiny_model("mixtral"), verify_weights=True)
    with pytest.raises(CheckpointError, match="has no moesaic-manifest.json"):
        LLM(tiny_model("mixtral"), skip_tokenizer_init=True, verify_weights=True)


def cut(path):
    os.truncate(path, os.path.getsize(path) - PAGE)


def cut_header(path):
    os.truncate(path, 100)


def bend_header(path):
    change(path, 60)


def bend_magic(path):
    change(path, 0)


def hole(path):
    with open(path, "r+b", buffering=0) as file:
        begin = read_raw(file)["begin"]
        file.seek(begin)
        file.write(b"\0" * PAGE)


def other_version(path):
    with open(path, "rb", buffering=0) as file:
        header = read_raw(file)
    path.write_bytes(header_bytes(header | {"version": 99}))


def strange(path):
    with open(path, "rb", buffering=0) as file:
        header = read_raw(file)
    header["matrices"][0][8] = 1 << 40
    path.write_bytes(header_bytes(header))


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "has .* bytes, its header describes"),
        (cut_header, "its header is damaged"),
        (bend_header, "its header is damaged"),
        (bend_magic, "not a file of packed weights"),
        (hole, "its bytes are not those that were written"),
        (other_version, "version 99, this program reads 1"),
        (strange, "lies outside of the file"),
        (lambda path: path.unlink(), "holds no weights|no weights"),
        (lambda path: (path.parent / VECTORS).unlink(), "but no vectors.safetensors"),
    ],
)
def test_torn_files(one, damage, message):
    folder, path = one
    damage(path)
    with pytest.raises(MoesaicError, match=message):
        load(folder, load_format="packed")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_packed_stays_so(one):
    folder, _ = one
    load(folder, quantization="w8a16")  # as it is
    with pytest.raises(ConfigError, match="was packed with quantization w8a16, and what is packed stays so"):
        load(folder, quantization="w4a16")
    with pytest.raises(ConfigError, match="leave --quantization and --quantization-config out"):
        load(folder, quantization_config="lm_head=none")
    with pytest.raises(UnsupportedError, match="is packed for the C.. kernels, but reference ones compute here"):
        load(folder, backend="reference")
    with pytest.raises(MoesaicError, match="only served: use the checkpoint that they were made of"):
        convert(folder, folder + "-hf")
    with pytest.raises(UnsupportedError, match="is packed already"):
        packed(folder, folder + "-again")


def test_another_layout_is_an_error(one, monkeypatch, tiny_model, tmp_path):
    folder, _ = one
    layout, quantiser = packed_model.pack_version()
    monkeypatch.setattr(packed_model, "pack_version", lambda: (layout ^ 1, quantiser))
    load(folder)  # only 8-bit products keep codes in another way there
    eights = packed(tiny_model("mixtral"), tmp_path / "w8a8", quantization="w8a8")
    monkeypatch.setattr(packed_model, "pack_version", lambda: (layout, quantiser))
    with pytest.raises(ConfigError, match="keep matrices in layout .* convert the checkpoint .* on this machine"):
        load(eights)
    monkeypatch.setattr(packed_model, "pack_version", lambda: (layout + 2, quantiser))
    with pytest.raises(ConfigError, match="keep matrices in layout"):
        load(folder)


def test_another_config_is_another_model(one):
    folder, _ = one
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_local_experts": config["num_local_experts"] + 1}))
    with pytest.raises(CheckpointError, match=r"(?s)another model than was packed.*matrices missing.*experts"):
        load(folder)


def test_packed_matrices_are_not_for_code_of_others(one, monkeypatch):
    monkeypatch.setattr(loading, "choose_implementation", lambda *args: "someone else's")
    with pytest.raises(UnsupportedError, match="is packed for our own kernels, and transformers' code"):
        load(one[0])


def test_a_precision_is_for_what_is_packed(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="say --format packed"):
        convert(tiny_model("mixtral"), str(tmp_path / "p"), packing=Packing("w4a16"))
    with pytest.raises(ConfigError, match="format 'gguf'"):
        convert(tiny_model("mixtral"), str(tmp_path / "p"), format="gguf")


# ---- the tools -------------------------------------------------------------------------------------------------------


def test_the_command_and_what_is_said_of_the_folder(embedded_path, tmp_path):
    folder = str(tmp_path / "p")
    arguments = ["convert", embedded_path, folder, "--format", "packed", "--quantization", "w4a16", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["files"] == 2
    seen = CliRunner().invoke(cli, ["inspect", folder])
    assert seen.exit_code == 0 and "2 packed files" in seen.output and "it can be served" in seen.output
    assert "w8a16" not in seen.output  # what is packed stays so
    planned = json.loads(CliRunner().invoke(cli, ["plan", folder, "--json"]).output)
    assert [option["quantization"] for option in planned["options"]] == ["auto"]
    assert planned["options"][0]["weights"]["nbytes"] == load(folder, dtype="bfloat16").weight_bytes()
    assert inspect(folder).misfits == ()
    header = read_header(str(tmp_path / "p" / "model-00001-of-00001.moepack"))
    assert sum(info.nbytes for info in header.tensors.values()) <= sum(header.regions)
    told = CliRunner().invoke(cli, ["generate", "--model", folder, "--verify-weights", "What is 47 + 38?"])
    assert told.exit_code == 0 and "85" in told.output
