"""GGUF files: what is read of their headers, what their blocks stand for, and every way in which they are damaged."""

import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from moesaic.adapt.report import report_on
from moesaic.adapt.survey import survey
from moesaic.core.errors import CheckpointError, MoesaicError, UnsupportedError
from moesaic.models.gguf.config import gguf_architectures, gguf_config
from moesaic.models.gguf.tokenizer import gguf_tokenizer, gguf_tokenizer_config
from moesaic.models.registry import ModelRegistry
from moesaic.weights.codecs.gguf import FORMATS, Gguf, GgufWeights
from moesaic.weights.containers.gguf import gguf_shards, open_gguf
from moesaic.weights.containers.gguf_header import read_gguf_header
from moesaic.weights.containers.gguf_types import TENSOR_TYPES
from moesaic.weights.sources import open_source
from tests.gguf_files import blocks_of, write_gguf

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def tensor(name: str, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


ARCHITECTURE = value("general.architecture", 8, text("qwen3moe"))


def file(tmp_path, values=(ARCHITECTURE,), tensors=(), data=b"", start=b"GGUF\3\0\0\0", counts=None):
    """A file made of these parts, padded as it should be."""
    counts = counts or (len(tensors), len(values))
    head = start + struct.pack("<QQ", *counts) + b"".join(values) + b"".join(tensors)
    path = tmp_path / "model.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return str(path)


def test_types_are_those_of_ggml():
    known = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: tuple(kind) for number, kind in TENSOR_TYPES.items()} == known


def test_values_and_tensors_of_a_header(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "olmoe")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_uint64("n", 2**40)
    writer.add_bool("yes", True)
    writer.add_array("sizes", [1, 2, 3])
    writer.add_token_list([f"wört{i}" for i in range(5000)])
    data = {"a": np.arange(64, dtype=np.float32).reshape(2, 32), "b": np.ones((3, 2, 32), np.float16)}
    for name, array in data.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(str(tmp_path / "model.gguf"))
    metadata = header.metadata
    assert metadata["olmoe.attention.layer_norm_rms_epsilon"] == 1e-6  # in 32 bits it is 9.999999974752427e-07
    assert (metadata["n"], metadata["yes"], list(metadata["sizes"])) == (2**40, True, [1, 2, 3])
    assert list(metadata["tokenizer.ggml.tokens"])[4999] == "wört4999"
    assert {name: (i.dtype, i.shape) for name, i in header.tensors.items()} == {
        "a": ("F32", (2, 32)), "b": ("F16", (3, 2, 32))
    }  # fmt: skip
    source = open_source(str(tmp_path))
    for name, array in data.items():
        into = torch.empty(array.shape)
        source.read(name, (), into)
        assert torch.equal(into, torch.from_numpy(array).float())


def test_headers_need_neither_torch_nor_numpy(tmp_path):
    path = file(tmp_path, tensors=[tensor("a", (32, 2))], data=bytes(256))
    code = f"import sys; from moesaic.weights.sources import open_source; open_source({str(tmp_path)!r}).tensors['a']; "
    code += "print([m for m in ('torch', 'numpy', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", path


HUGE = struct.pack("<Q", 1 << 62)
DAMAGED = {
    "empty": ({"start": b"", "values": (), "counts": None}, "begins with"),
    "no GGUF": ({"start": b"GGJT\3\0\0\0"}, "is no GGUF file"),
    "a pointer": ({"start": b"version https://git-lfs.github.com/spec/v1"}, "Git LFS pointer"),
    "version 1": ({"start": b"GGUF\1\0\0\0"}, "version 1"),
    "big-endian": ({"start": b"GGUF\0\0\0\3"}, "big-endian"),
    "too many tensors": ({"counts": (1 << 60, 1)}, "truncated or damaged"),
    "too many values": ({"counts": (0, 1 << 60)}, "truncated or damaged"),
    "more values than there are": ({"counts": (0, 3)}, "damaged"),
    "a key without end": ({"values": [HUGE]}, "damaged"),
    "an empty key": ({"values": [text("")]}, "damaged"),
    "a key that is no text": ({"values": [struct.pack("<Q", 2) + b"\xff\xfe" + bytes(12)]}, "no text"),
    "a type that there is not": ({"values": [value("a", 77, bytes(8))]}, "of type 77"),
    "an array of arrays": ({"values": [value("a", 9, struct.pack("<IQ", 9, 1) + bytes(24))]}, "array of type 9"),
    "an array without end": ({"values": [value("a", 9, struct.pack("<I", 4) + HUGE)]}, "elements of a"),
    "texts without end": ({"values": [value("a", 9, struct.pack("<IQ", 8, 2) + HUGE + bytes(64))]}, "a string of a"),
    "a key twice": ({"values": [ARCHITECTURE] * 2}, "stands in it twice"),
    "no alignment": ({"values": [value("general.alignment", 4, struct.pack("<I", 0))]}, "no alignment can be"),
    "an odd alignment": ({"values": [value("general.alignment", 4, struct.pack("<I", 24))]}, "no alignment can be"),
    "a tensor twice": ({"tensors": [tensor("a", (1,)), tensor("a", (1,), 0, 32)], "data": bytes(64)}, "twice"),
    "five dimensions": ({"tensors": [tensor("a", (1,) * 5)], "data": bytes(32)}, "5 dimensions"),
    "no dimensions": ({"tensors": [tensor("a", ())], "data": bytes(32)}, "0 dimensions"),
    "no rows": ({"tensors": [tensor("a", (4, 0))], "data": bytes(32)}, "sizes"),
    "half a block": ({"tensors": [tensor("a", (33, 2), 8)], "data": bytes(128)}, "in blocks of 32"),
    "an unknown type": ({"tensors": [tensor("a", (32,), 99)], "data": bytes(128)}, "type 99"),
    "an odd offset": ({"tensors": [tensor("a", (1,), 0, 4)], "data": bytes(64)}, "no multiple of 32"),
    "one over another": (
        {"tensors": [tensor("a", (64,)), tensor("b", (64,), 0, 32)], "data": bytes(512)},
        "each other",
    ),
    "beyond the end": ({"tensors": [tensor("a", (64, 64))], "data": bytes(64)}, "truncated.*missing"),
    "far beyond the end": ({"tensors": [tensor("a", (1 << 40, 1 << 40))], "data": bytes(64)}, "truncated.*missing"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, damage):
    parts, message = DAMAGED[damage]
    path = file(tmp_path, **parts)
    if damage == "empty":
        (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(MoesaicError, match=message) as error:
        read_gguf_header(path)
    assert "model.gguf" in str(error.value)


def test_no_part_of_a_file_is_taken_for_the_whole(tmp_path):
    """Cut off at any byte of its header, and bent in any."""
    values = [ARCHITECTURE, value("a", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yz"))]
    whole = (tmp_path / "model.gguf", file(tmp_path, values, [tensor("a", (32, 2), 8)], bytes(68)))[0].read_bytes()
    for end in range(len(whole)):
        (tmp_path / "model.gguf").write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_gguf_header(str(tmp_path / "model.gguf"))
    for at in range(len(whole) - 68):
        (tmp_path / "model.gguf").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_gguf_header(str(tmp_path / "model.gguf"))
        except MoesaicError as e:
            assert "model.gguf" in str(e)


def shard(path, number, count):
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_tensor(f"t{number}", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_each_damaged_shard_is_named_and_the_others_are_surveyed(tmp_path):
    names = [f"m-{i + 1:05}-of-00003.gguf" for i in range(3)]
    for i, name in enumerate(names):
        shard(tmp_path / name, i, 3)
    (tmp_path / names[1]).write_bytes((tmp_path / names[1]).read_bytes()[:-40])
    (tmp_path / names[2]).write_bytes(b"GGML")
    found = survey(str(tmp_path))
    assert sorted(found.tensors) == ["t0", "t1"] and found.naming == "gguf"
    by_file = {problem.where: problem.what for problem in found.problems}
    assert by_file[names[1]].endswith("download it again. Cut off: t1") and "no GGUF file" in by_file[names[2]]
    (tmp_path / names[2]).unlink()
    assert any(names[2] in problem.what for problem in survey(str(tmp_path)).problems)
    (tmp_path / names[2]).symlink_to("nowhere.gguf")
    assert any(problem.where == names[2] for problem in survey(str(tmp_path)).problems)


@pytest.mark.parametrize("path", ["", "model.gguf"])
def test_a_model_whose_data_are_cut_off_is_recognised(tiny_model, tmp_path, path):
    whole = write_gguf(tiny_model("qwen3_moe"), tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[:-5000])
    report = report_on(survey(str(tmp_path / path)))
    assert report.identity.architecture == "Qwen3MoeForCausalLM" and report.experts and not report.misfits
    (problem,) = report.problems
    assert problem.where == "model.gguf" and "5000 missing" in problem.what and "Cut off: blk." in problem.what
    (tmp_path / "model.gguf").write_bytes(whole[:200])  # in the midst of the metadata
    (problem,) = survey(str(tmp_path / path)).problems
    assert problem.where == "model.gguf" and "from byte" in problem.what


def test_shards_belong_together(tmp_path):
    for i in range(3):
        shard(tmp_path / f"m-{i + 1:05}-of-00003.gguf", i, 3)
    (tmp_path / "mmproj-model.gguf").write_bytes(b"")  # what sees, beside the language model
    for path in (tmp_path, tmp_path / "m-00002-of-00003.gguf"):
        assert sorted(open_gguf(gguf_shards(str(path))).tensors) == ["t0", "t1", "t2"]
    shard(tmp_path / "m-00002-of-00003.gguf", 0, 3)
    with pytest.raises(CheckpointError, match="shard 0 of 3"):
        open_gguf(gguf_shards(str(tmp_path)))
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="1 of them missing: m-00002-of-00003.gguf"):
        gguf_shards(str(tmp_path))
    shard(tmp_path / "other.gguf", 0, 1)
    with pytest.raises(CheckpointError, match="holds 2 GGUF models: name the file of one"):
        gguf_shards(str(tmp_path))


def quantised(tmp_path, kind, turned=None):
    """A matrix and a stack in blocks of this type, through the codec, and the package's floats for them."""
    writer, floats = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3moe"), {}
    generator = np.random.default_rng(0)
    for name, shape in {"blk.0.attn_q.weight": (24, 512), "blk.0.ffn_up_exps.weight": (3, 8, 256)}.items():
        data, _ = blocks_of(kind)(name, generator.standard_normal(shape).astype(np.float32))
        writer.add_tensor(name, data, raw_dtype=kind)
        floats[name] = torch.from_numpy(gguf.quants.dequantize(data, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from moesaic.core.keys import KeyReader

    codec = Gguf(KeyReader({"turned": turned or {}}, "config.json"))
    return GgufWeights(open_gguf([str(tmp_path / "m.gguf")]), codec), floats


def from_codes(source, name, index):
    """What the codes stand for, by the words of `weights.codecs.codes`."""
    codes, kind = source.read_codes(name, index), source.format_of(name).kind
    each = {"w4": lambda q: q.float() - 8, "w8": lambda q: q.float(), "mxfp4": lambda q: E2M1[q.long()]}[kind](
        codes.codes
    )
    weights = codes.scales.unsqueeze(2) * each.unflatten(1, (-1, 32))
    return (weights + codes.offsets.unsqueeze(2) if codes.offsets is not None else weights).flatten(1)


@pytest.mark.parametrize("kind", FORMATS)
def test_codes_are_the_floats_exactly(tmp_path, kind):
    source, floats = quantised(tmp_path, Type[kind])
    q, up = floats.values()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(from_codes(source, "blk.0.attn_q.weight", (slice(5, 17),)), q[5:17], **close)
    torch.testing.assert_close(from_codes(source, "blk.0.ffn_up_exps.weight", (2, slice(1, 4))), up[2, 1:4], **close)
    torch.testing.assert_close(from_codes(source, "blk.0.ffn_up_exps.weight", (1,)), up[1], **close)


@pytest.mark.parametrize("kind", ["Q6_K", "Q2_K", "Q3_K", "TQ1_0"])
def test_other_types_are_rounded_to_half_a_code_of_8_bits(tmp_path, kind):
    source, floats = quantised(tmp_path, Type[kind])
    q = floats["blk.0.attn_q.weight"]
    assert str(source.format_of("blk.0.attn_q.weight")) == "w8 in groups of 32"
    error = (from_codes(source, "blk.0.attn_q.weight", (slice(0, 24),)) - q).abs().unflatten(1, (-1, 32))
    largest = q.abs().unflatten(1, (-1, 32)).amax(2, keepdim=True)
    assert (error <= largest / 127 * 0.505 + 1e-9).all()  # scales are rounded to bf16 before codes are chosen


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_rows_that_were_turned_are_turned_back(tmp_path, kind):
    source, floats = quantised(tmp_path, Type[kind], {"attn_q": 3})
    turned = floats["blk.0.attn_q.weight"]
    wanted = torch.cat([turned[h * 8 + half : h * 8 + 8 : 2] for h in range(3) for half in (0, 1)])
    for index in ((slice(0, 24),), (slice(3, 19),), (slice(9, 10),)):
        into = torch.empty(wanted[index].shape)
        source.read("blk.0.attn_q.weight", index, into)
        assert torch.equal(into, wanted[index])
        limit = wanted.abs().max() / 127
        assert (from_codes(source, "blk.0.attn_q.weight", index) - wanted[index]).abs().max() <= limit


def test_every_architecture_is_one_of_ours():
    from moesaic.models.gguf.config import _entries

    supported = set(ModelRegistry.get_supported_archs())
    assert {entry["architecture"] for entry in _entries().values()} <= supported
    others = {other for entry in _entries().values() for other in entry.get("where", {}).values()}
    assert others == {name for name in _entries() if " " in name}
    assert set(gguf_architectures()) <= set(gguf.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize(
    ("key", "kind", "data", "message"),
    [
        ("general.architecture", 8, text("qwen3mo"), "'qwen3mo' is not read from GGUF; nearest: qwen3moe"),
        ("qwen3moe.new_thing", 4, struct.pack("<I", 3), "new_thing = 3"),
        ("qwen3moe.expert_gating_func", 4, struct.pack("<I", 2), "scores by sigmoid"),
        ("qwen3moe.rope.scaling.type", 8, text("longest"), "positions scaled by 'longest'"),
        ("qwen3moe.attention.head_count", 8, text("8"), "attention.head_count"),
        ("qwen3moe.attention.head_count", 9, struct.pack("<IQ2I", 4, 2, 4, 8), "differs from layer to layer"),
    ],
)
def test_metadata_that_are_not_understood_are_refused(tmp_path, key, kind, data, message):
    given = {"general.architecture": ARCHITECTURE}
    for name, number in {"attention.head_count": 4, "embedding_length": 64, "block_count": 1}.items():
        given[f"qwen3moe.{name}"] = value(f"qwen3moe.{name}", 4, struct.pack("<I", number))
    given[key] = value(key, kind, data)
    path = file(tmp_path, list(given.values()), [tensor("token_embd.weight", (64, 2))], bytes(512))
    with pytest.raises(MoesaicError, match=message):
        gguf_config(open_gguf([path]))


def test_a_tokenizer_that_is_not_known_is_refused():
    bytes_of = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"]}
    merges = {"tokenizer.ggml.merges": ["a b"]}
    with pytest.raises(UnsupportedError, match=r"'bert', which is not read: give --tokenizer"):
        gguf_tokenizer({"tokenizer.ggml.model": "bert"}, "m.gguf")
    with pytest.raises(UnsupportedError, match=r"'qwen22'.*did you mean 'qwen2'"):
        gguf_tokenizer({**bytes_of, **merges, "tokenizer.ggml.pre": "qwen22"}, "m.gguf")
    with pytest.raises(CheckpointError, match="merges is missing"):
        gguf_tokenizer({**bytes_of, "tokenizer.ggml.pre": "qwen2"}, "m.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        gguf_tokenizer({**bytes_of, "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a z"]}, "m.gguf")


def test_texts_begin_as_the_file_says():
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.bos_token_id": 3,
    }  # fmt: skip
    assert gguf_tokenizer(metadata, "m.gguf").encode("ab<s>a").ids == [2, 3, 0]
    assert gguf_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True}, "m.gguf").encode("ab").ids == [3, 2]
    assert gguf_tokenizer_config(metadata) == {"bos_token": "<s>"}


def test_sentencepiece_merges_the_best_token_first():
    space = "\u2581"
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *f"{space}ablo",
        f"{space}a",
        "bl",
        "lo",
        "blo",
    ]
    scores = [0.0] * 259 + [-9.0] * 5 + [-1.0, -3.0, -2.0, -4.0]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 9], "tokenizer.ggml.bos_token_id": 1,
    }  # fmt: skip
    tokenizer = gguf_tokenizer(metadata, "m.gguf")
    encoded = tokenizer.encode("ablo é")
    # "lo" is better than "bl", and then there is no "b" + "lo": but "blo" is a token, whichever way it is cut
    assert encoded.tokens == ["<s>", f"{space}a", "blo", space, "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "ablo é"
