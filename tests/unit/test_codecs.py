"""Weights of quantised checkpoints are the floats that each format's definition says, whichever part is read."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from moesaic.weights.codecs import decoded, stored_as
from moesaic.weights.sources import open_source
from tests.quantised import awq, compressed, fp8, gptq, mxfp4

ROWS, COLS = 40, 96
CT = "compressed-tensors"


def groups(**weights) -> dict:
    """The config of compressed-tensors with one group for all."""
    return {"quant_method": CT, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def grouped(size: int = 32, **more) -> dict:
    return groups(**{"num_bits": 4, "strategy": "group", "group_size": size, **more})


# what quantises, the config's object, and how the weight is said to be stored
CASES = {
    "gptq": (gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq: int4 in groups of 32"),
    "gptq without g_idx": (gptq(index=False), {"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4 in groups"),
    "gptq asymmetric": (
        gptq(symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
        "int4 in groups of 32",
    ),
    "gptq_v2": (
        gptq(symmetric=False, second=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
        "int4 in groups of 32",
    ),
    "gptq of 8 bits": (gptq(bits=8), {"quant_method": "gptq", "bits": 8, "group_size": 32}, "int8 in groups of 32"),
    "gptq of 2 bits": (gptq(bits=2), {"quant_method": "gptq", "bits": 2, "group_size": 32}, "int2 in groups of 32"),
    "gptq by row": (gptq(group=0), {"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq: int4 by row"),
    "gptq whose last group is short": (
        gptq(group=64, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False},
        "int4 in groups of 64",
    ),
    "gptq in order of activations": (
        gptq(order=3, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True},
        "int4 in groups of 32",
    ),
    "auto-round": (
        gptq(),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"},
        "auto-round: int4 in groups of 32",
    ),
    "auto-round as awq": (
        awq(),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"},
        "auto-round: int4 in groups of 32",
    ),
    "awq": (
        awq(),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        "awq: int4 in groups of 32",
    ),
    "awq of 8 bits": (
        awq(bits=8),
        {"quant_method": "awq", "w_bit": 8, "q_group_size": 32},
        "awq: int8 in groups of 32",
    ),
    "awq by row": (awq(group=0), {"quant_method": "awq", "bits": 4, "group_size": -1}, "awq: int4 by row"),
    "packed 4 bits": (compressed(), grouped(), f"{CT}: int4 in groups of 32"),
    "packed asymmetric": (compressed(symmetric=False), grouped(symmetric=False), "int4 in groups of 32"),
    "packed 8 bits by channel": (
        compressed(bits=8, group=0),
        groups(num_bits=8, strategy="channel"),
        f"{CT}: int8 by row",
    ),
    "packed in order of activations": (
        compressed(order=5, symmetric=False),
        grouped(symmetric=False, actorder="group"),
        "int4 in groups of 32",
    ),
    "int8": (compressed(bits=8, group=0, packed=False), groups(num_bits=8, strategy="channel"), "int8 by row"),
    "int8 asymmetric in groups": (
        compressed(bits=8, packed=False, symmetric=False),
        grouped(num_bits=8, symmetric=False),
        "int8 in groups of 32",
    ),
    "fp8 in blocks": (
        fp8((16, 32)),
        {"quant_method": "fp8", "weight_block_size": [16, 32], "activation_scheme": "dynamic"},
        "fp8: float8_e4m3fn in blocks of 16 x 32",
    ),
    "fp8 in blocks that do not divide": (
        fp8((128, 64)),
        {"quant_method": "fp8", "weight_block_size": [128, 64]},
        "fp8: float8_e4m3fn",
    ),
    "fp8 with powers of two": (
        fp8((16, 32), scales=torch.float8_e8m0fnu, scale="scale"),
        {"quant_method": "fp8", "weight_block_size": [16, 32], "scale_fmt": "ue8m0"},
        "blocks of 16 x 32",
    ),
    "fp8 with one scale": (
        fp8((0, 0), scale="weight_scale"),
        {"quant_method": "fp8", "activation_scheme": "static"},
        "fp8: float8_e4m3fn with one scale",
    ),
    "fp8 by row": (
        fp8((1, 0), scale="weight_scale", scales=torch.bfloat16),
        groups(num_bits=8, type="float", strategy="channel"),
        f"{CT}: float8_e4m3fn by row",
    ),
    "fp8 in groups": (
        fp8((1, 32), scale="weight_scale"),
        groups(num_bits=8, type="float", strategy="group", group_size=32),
        "float8_e4m3fn in groups of 32",
    ),
    "compressed-tensors' fp8 in blocks": (
        fp8((16, 16), scale="weight_scale"),
        groups(num_bits=8, type="float", strategy="block", block_structure=[16, 16]),
        "blocks of 16 x 16",
    ),
    "e5m2": (fp8((16, 32), torch.float8_e5m2), {"quant_method": "fp8", "weight_block_size": [16, 32]}, "e5m2"),
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)) + 0.1


def opened(folder, tensors: dict, config: dict):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return decoded(open_source(str(folder)), {"quantization_config": config})


def whole(source, name: str) -> torch.Tensor:
    into = torch.empty(source.tensors[name].shape)
    source.read(name, (), into)
    return into


@pytest.mark.parametrize("case", CASES)
def test_a_weight_is_what_its_codes_stand_for(tmp_path, case):
    quantise, config, said = CASES[case]
    parts, floats = quantise(drawn(ROWS, COLS))
    tensors = {f"a.b.{kind}": part for kind, part in parts.items()} | {"a.norm.weight": drawn(5)}
    source = opened(tmp_path, tensors, config)
    assert sorted(source.tensors) == ["a.b.weight", "a.norm.weight"]
    info = source.tensors["a.b.weight"]
    assert info.shape == (ROWS, COLS) and info.dtype == "F32"
    assert info.nbytes == sum(part.nbytes for part in parts.values())
    assert said in str(stored_as(source)["a.b.weight"])
    found = whole(source, "a.b.weight")
    torch.testing.assert_close(found, floats, rtol=3e-7, atol=1e-9)
    assert torch.equal(whole(source, "a.norm.weight"), tensors["a.norm.weight"])
    for index in [(slice(3, 4),), (slice(3, 21),), (slice(37, 40),), (5,), (slice(0, 0),), (9, slice(4, 70))]:
        into = torch.empty(found[index].shape, dtype=torch.bfloat16)
        source.read("a.b.weight", index, into)
        assert torch.equal(into, found[index].bfloat16()), index
    apart = torch.zeros(ROWS, 2 * COLS)[:, ::2]
    source.read("a.b.weight", (), apart)
    assert torch.equal(apart, found)


@pytest.mark.parametrize("case", [case for case in CASES if "fp8" not in case and "e5m2" not in case])
def test_exact_codes(tmp_path, case):
    quantise, config, _ = CASES[case]
    parts, floats = quantise(drawn(ROWS, COLS))
    source = opened(tmp_path, {f"m.{kind}": part for kind, part in parts.items()}, config)
    format = source.format_of("m.weight")
    if "order" in case or "2 bits" in case:
        assert format is None
        return
    got = source.read_codes("m.weight", (slice(8, 30),))
    half = 8.0 if format.kind == "w4" else 0.0
    assert got.codes.dtype == (torch.uint8 if format.kind == "w4" else torch.int8)
    assert format.offsets == (got.offsets is not None) == (not _symmetric(config))
    group = format.group or COLS
    scales = got.scales.repeat_interleave(group, 1)[:, :COLS]
    values = (got.codes.float() - half) * scales
    if got.offsets is not None:
        values += got.offsets.repeat_interleave(group, 1)[:, :COLS]
    torch.testing.assert_close(values, floats[8:30], rtol=1e-5, atol=1e-6)
    assert not source.transposed("m.weight")


def _symmetric(config: dict) -> bool:
    weights = config.get("config_groups", {"group_0": {"weights": config}})["group_0"]["weights"]
    awq_like = config["quant_method"] == "awq" or "awq" in config.get("packing_format", "")
    return not awq_like and weights.get("sym", True) and weights.get("symmetric", True)


def test_mxfp4_as_transformers_reads_it(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), dtype=torch.uint8, generator=generator)  # every code, any sign
    scales = torch.randint(100, 140, (3, 10, 4), dtype=torch.uint8, generator=generator)
    source = opened(tmp_path, {"x.down_proj_blocks": blocks, "x.down_proj_scales": scales}, {"quant_method": "mxfp4"})
    assert source.tensors["x.down_proj_blocks"].shape == (3, 10, 128)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    found = whole(source, "x.down_proj_blocks")
    assert torch.equal(found, expected)
    into = torch.empty(4, 128)
    source.read("x.down_proj_blocks", (2, slice(5, 9)), into)
    assert torch.equal(into, expected[2, 5:9])
    format = source.format_of("x.down_proj_blocks")
    assert (format.kind, format.group) == ("mxfp4", 32)
    got = source.read_codes("x.down_proj_blocks", (1, slice(2, 7)))
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    assert torch.equal(numbers[got.codes.long()] * got.scales.repeat_interleave(32, 1), expected[1, 2:7])
    parts, floats = mxfp4(drawn(10, 64))
    (tmp_path / "own").mkdir()
    own = opened(tmp_path / "own", {f"y_{k}": p for k, p in parts.items()}, {"quant_method": "mxfp4"})
    assert torch.equal(whole(own, "y_blocks"), floats)


def test_fp8_blocks_as_transformers_reads_them(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    generator = torch.Generator().manual_seed(3)
    stored = torch.randn(3, 64, 96, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 4, 3, generator=generator)
    source = opened(
        tmp_path,
        {"e.gate_up_proj": stored, "e.gate_up_proj_scale_inv": scales},
        {"quant_method": "fp8", "weight_block_size": [16, 32]},
    )
    expected = Fp8Dequantize(None)._dequantize_one(stored, scales, torch.float32)
    assert torch.equal(whole(source, "e.gate_up_proj"), expected)
    into = torch.empty(21, 96)
    source.read("e.gate_up_proj", (1, slice(11, 32)), into)
    assert torch.equal(into, expected[1, 11:32])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_number_of_fp8(tmp_path, dtype):
    stored = torch.arange(256, dtype=torch.uint8).view(16, 16).view(dtype)
    for rows in (16, 1):
        folder = tmp_path / str(rows)
        folder.mkdir()
        cut = stored[:rows, : 16 if rows == 16 else 15].contiguous()
        source = opened(folder, {"m.weight": cut, "m.weight_scale": torch.ones(1)}, {"quant_method": "fp8"})
        torch.testing.assert_close(whole(source, "m.weight"), cut.float(), rtol=0, atol=0, equal_nan=True)


def test_a_weight_is_decoded_a_few_rows_at_a_time(tmp_path, monkeypatch):
    from moesaic.weights.codecs import encoded

    parts, floats = fp8((16, 32))(drawn(ROWS, COLS))
    source = opened(
        tmp_path, {f"m.{k}": p for k, p in parts.items()}, {"quant_method": "fp8", "weight_block_size": [16, 32]}
    )
    monkeypatch.setattr(encoded, "DECODED_AT_ONCE", 7 * COLS)
    assert torch.equal(whole(source, "m.weight"), floats)


def test_modules_with_settings_of_their_own(tmp_path):
    weights = {name: drawn(ROWS, COLS) for name in ("a.0.q", "a.1.q", "a.1.k")}
    wide, narrow = gptq(bits=8, group=64), gptq()
    made = {name: (wide if name == "a.1.q" else narrow)(weight) for name, weight in weights.items()}
    tensors = {f"{name}.{kind}": part for name, (parts, _) in made.items() for kind, part in parts.items()}
    change = {"bits": 8, "group_size": 64}
    for number, config in enumerate(
        [
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {r"+:.*1\.q": change, "-:.*norm": {}}},
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": {"a.1.q": change}},
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = opened(folder, tensors, config)
        for name, (_, floats) in made.items():
            torch.testing.assert_close(whole(source, f"{name}.weight"), floats, rtol=3e-7, atol=1e-9)
        assert {name: stored.bits for name, stored in stored_as(source).items()} == {
            "a.0.q.weight": 4, "a.1.q.weight": 8, "a.1.k.weight": 4,
        }  # fmt: skip


def test_groups_are_found_by_name_then_pattern_then_kind(tmp_path):
    made = {
        "a.0.q": compressed(bits=8, group=0)(drawn(ROWS, COLS)),
        "a.0.k": compressed(bits=4, group=32)(drawn(ROWS, COLS)),
        "a.0.v": compressed(bits=8, group=0, packed=False)(drawn(ROWS, COLS)),
    }
    tensors = {f"{name}.{kind}": part for name, (parts, _) in made.items() for kind, part in parts.items()}
    config = {
        "quant_method": CT,
        "format": "mixed-precision",
        "config_groups": {
            "kinds": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}},
            "patterns": {
                "targets": [r"re:.*\.k$"],
                "format": "pack-quantized",
                "weights": {"num_bits": 4, "strategy": "group", "group_size": 32},
            },
        },
    }
    source = opened(tmp_path, tensors, config)
    for name, (_, floats) in made.items():
        torch.testing.assert_close(whole(source, f"{name}.weight"), floats, rtol=3e-7, atol=1e-9)


def test_what_is_no_weight_is_left_out_where_the_config_says_so(tmp_path):
    parts, _ = fp8((0, 0), scale="weight_scale")(drawn(ROWS, COLS))
    tensors = {f"l.k_proj.{kind}": part for kind, part in parts.items()}
    tensors |= {"l.k_proj.input_scale": torch.ones(1), "l.k_scale": torch.ones(1), "l.k_proj.bias": torch.ones(ROWS)}
    left = ["l.k_proj.bias", "l.k_proj.weight"]
    config = {"quant_method": "fp8", "activation_scheme": "static", "kv_cache_scheme": "static"}
    assert sorted(opened(tmp_path, tensors, config).tensors) == left
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"},
        "input_activations": {"num_bits": 8, "type": "float", "dynamic": False},
    }
    config = {"quant_method": CT, "config_groups": {"g": group}, "kv_cache_scheme": {"num_bits": 8}}
    assert sorted(opened(tmp_path, tensors, config).tensors) == left
    config = {"quant_method": CT, "config_groups": {"g": {**group, "input_activations": None}}}
    assert "l.k_scale" in opened(tmp_path, tensors, config).tensors  # which accounting reports


def test_biases_that_the_quantiser_made_up(tmp_path):
    parts, _ = gptq()(drawn(ROWS, COLS))
    tensors = {f"{name}.{kind}": part.clone() for name in ("q", "o") for kind, part in parts.items()}
    biases = {"q.bias": torch.ones(ROWS), "o.bias": torch.zeros(ROWS)}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    assert sorted(opened(tmp_path, tensors | biases, config).tensors) == ["o.weight", "q.bias", "q.weight"]
    del biases["q.bias"]  # then the other is the model's own
    assert sorted(opened(tmp_path, tensors | biases, config).tensors) == ["o.bias", "o.weight", "q.weight"]


def test_headers_need_no_torch(tmp_path):
    parts, _ = gptq()(drawn(ROWS, COLS))
    opened(
        tmp_path,
        {f"m.{kind}": part for kind, part in parts.items()},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
    )
    program = f"""
import sys
from moesaic.weights.codecs import decoded, stored_as
from moesaic.weights.sources import open_source
config = {{"quantization_config": {{"quant_method": "gptq", "bits": 4, "group_size": 32}}}}
print(*stored_as(decoded(open_source({str(tmp_path)!r}), config)).values(), "torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "gptq: int4 in groups of 32 False"
