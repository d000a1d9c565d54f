"""What is not understood of a quantised checkpoint is refused, in one error that says what and where."""

import pytest
import torch
from safetensors.torch import save_file

from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.weights.codecs import decoded, method_of
from moesaic.weights.sources import open_source
from tests.quantised import awq, compressed, fp8, gptq

CT = "compressed-tensors"
WEIGHTS = {"num_bits": 4, "strategy": "group", "group_size": 32}


def group(**weights) -> dict:
    return {"quant_method": CT, "config_groups": {"g": {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}}}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 32]}


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"quant_method": "bitsandbytes"}, UnsupportedError, "bitsandbytes (NF4, FP4 or LLM.int8) is not read"),
        ({"quant_method": "hqq"}, UnsupportedError, "HQQ is not read"),
        ({"quant_method": "quip"}, UnsupportedError, "QuIP# is not read"),
        ({"quant_method": "exl2"}, UnsupportedError, "EXL2"),
        ({"quant_method": "torchao"}, UnsupportedError, "torchao is not read"),
        ({"quant_method": "modelopt"}, UnsupportedError, "ModelOpt (NVFP4 or FP8) is not read"),
        ({"quant_method": "gptqq"}, UnsupportedError, "did you mean 'gptq'"),
        ({"bits": 4}, UnsupportedError, "method None"),
        ("gptq", ConfigError, "quantization_config must be an object"),
        ({**GPTQ, "bits": 3}, UnsupportedError, "codes of 3 bits are not read; those of 2, 4, 8 are"),
        ({**GPTQ, "bits": "4"}, ConfigError, "quantization_config.bits must be int"),
        ({"quant_method": "gptq"}, ConfigError, "quantization_config.bits or quantization_config.w_bit is missing"),
        ({**GPTQ, "group_size": -2}, ConfigError, "quantization_config.group_size = -2"),
        ({**GPTQ, "checkpoint_format": "marlin"}, ConfigError, "only gptq and gptq_v2 are read"),
        ({**GPTQ, "is_marlin_format": True}, UnsupportedError, "is_marlin_format"),
        ({**GPTQ, "group_sise": 64}, UnsupportedError, "nearest understood key: group_size"),
        ({**GPTQ, "dynamic": {"+:[": {}}}, ConfigError, "no regular expression"),
        ({**GPTQ, "dynamic": {"+:(a+)+b": {}}}, ConfigError, "repeats what is repeated"),
        ({**GPTQ, "dynamic": {"+:a": {"bitz": 8}}}, UnsupportedError, "dynamic.bitz"),
        ({**GPTQ, "dynamic": {"+:a": 8}}, ConfigError, "'+:a' must be an object"),
        ({**AWQ, "version": "gemv"}, ConfigError, "only gemm is read"),
        ({**AWQ, "zero_point": False}, UnsupportedError, "zero_point = false is not supported"),
        ({**AWQ, "bits": 2}, UnsupportedError, "codes of 2 bits"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round"}, ConfigError, "packing_format"),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, UnsupportedError, "data_type"),
        (
            {"quant_method": "auto-round", "bits": 4, "extra_config": {"a": {"bits": "8"}}},
            ConfigError,
            "a.bits must be",
        ),
        ({**FP8, "weight_block_size": [128]}, ConfigError, "must be two sizes"),
        ({**FP8, "expert_dtype": "fp4"}, UnsupportedError, "expert_dtype"),
        ({**FP8, "activation_scheme": "some"}, ConfigError, "there are dynamic and static"),
        ({**group(), "format": "nvfp4-pack-quantized"}, UnsupportedError, "nvfp4-pack-quantized is not read"),
        ({**group(), "format": "marlin-24"}, UnsupportedError, "marlin-24 is not read"),
        ({**group(), "sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedError, "sparsity_config.format"),
        ({**group(), "transform_config": {"config_groups": {"R": {}}}}, UnsupportedError, "transform_config"),
        (group(num_bits=3), UnsupportedError, "ints of 3 bits are not read"),
        (group(num_bits=4, type="float"), UnsupportedError, "floats of 4 bits are not read"),
        (group(strategy="token"), ConfigError, "only tensor, channel, group, block are read"),
        (group(group_size=None), ConfigError, "where the strategy is group"),
        (group(symetric=True), UnsupportedError, "config_groups.g.weights.symetric"),
        (group(dynamic=True), UnsupportedError, "dynamic"),
        ({"quant_method": CT, "config_groups": {"g": 3}}, ConfigError, "config_groups: g must be an object"),
        ({"quant_method": "mxfp4", "block_size": 16}, UnsupportedError, "quantization_config.block_size = 16"),
    ],
    ids=str,
)
def test_configs(config, error, words):
    with pytest.raises(error) as e:
        method_of({"quantization_config": config}, "folder/config.json")
    assert words in str(e.value) and "folder/config.json" in str(e.value)


def test_where_a_config_may_say_it():
    assert method_of({}) is None and method_of({"quantization_config": None}) is None
    assert method_of({"text_config": {"quantization_config": GPTQ}}) == "gptq"
    assert method_of({"compression_config": group()}) == CT


def weight() -> torch.Tensor:
    return torch.randn(40, 96, generator=torch.Generator().manual_seed(7))


def less(parts: dict, kind: str) -> dict:
    return {name: part for name, part in parts.items() if name != kind}


def other(parts: dict, kind: str, tensor: torch.Tensor) -> dict:
    return {**parts, kind: tensor}


P = {
    "gptq": gptq()(weight())[0],
    "awq": awq()(weight())[0],
    "packed": compressed(symmetric=False)(weight())[0],
    "int8": compressed(bits=8, group=0, packed=False)(weight())[0],
    "fp8": fp8((16, 32))(weight())[0],
}
INT8 = {
    "quant_method": CT,
    "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
}
ASYM = group(symmetric=False)


MXFP4 = {"quant_method": "mxfp4"}


def blocks(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("parts", "config", "words"),
    [
        (less(P["gptq"], "scales"), GPTQ, "m.scales is missing: a GPTQ weight consists of"),
        (less(P["gptq"], "qweight"), GPTQ, "m.qweight is missing"),
        (P["gptq"], {**GPTQ, "bits": 8}, "a GPTQ weight [40, 48] of 8 bits in groups of 32 needs"),
        (P["gptq"], {**GPTQ, "group_size": 64}, "m.scales is F16 [3, 40], but a GPTQ weight [40, 96]"),
        (other(P["gptq"], "qweight", torch.zeros(12, 40)), GPTQ, "m.qweight is F32 [12, 40]"),
        (other(P["gptq"], "qweight", torch.zeros(0, 40, dtype=torch.int32)), GPTQ, "m.qweight is I32 [0, 40]"),
        (other(P["gptq"], "g_idx", torch.zeros(95, dtype=torch.int32)), GPTQ, "m.g_idx is I32 [95]"),
        (other(P["gptq"], "weight", weight()), GPTQ, "which the checkpoint also holds quantised"),
        (other(P["awq"], "qzeros", torch.zeros(3, 40, dtype=torch.int32)), AWQ, "m.qzeros is I32 [3, 40]"),
        (less(P["awq"], "qzeros"), AWQ, "m.qzeros is missing"),
        (less(P["packed"], "weight_shape"), ASYM, "m.weight_shape is missing"),
        (less(P["packed"], "weight_packed"), ASYM, "m.weight_packed is missing"),
        (less(P["packed"], "weight_zero_point"), ASYM, "m.weight_zero_point is missing"),
        (P["packed"], {**ASYM, "config_groups": {}}, "no target of any"),
        (P["packed"], group(symmetric=False, group_size=48), "m.weight_scale is BF16 [40, 3]"),
        (less(P["int8"], "weight_scale"), INT8, "m.weight_scale is missing"),
        (less(P["int8"], "weight"), INT8, "m.weight is missing"),
        (less(P["fp8"], "weight_scale_inv"), FP8, "m.weight_scale_inv is missing: the FP8 weight m.weight"),
        (P["fp8"], {**FP8, "weight_block_size": [99, 99]}, "needs a scale for all, for each row, or for blocks of 99"),
        (other(P["fp8"], "weight_scale_inv", torch.zeros(3, 3, dtype=torch.int32)), FP8, "no dtype of scales"),
        ({"a_blocks": blocks(2, 4, 3, 15), "a_scales": blocks(2, 4, 3)}, MXFP4, "m.a_blocks is U8 [2, 4, 3, 15]"),
        ({"a_blocks": blocks(2, 4, 3, 16), "a_scales": blocks(2, 4)}, MXFP4, "m.a_scales is U8 [2, 4]"),
        ({"a_blocks": blocks(2, 4, 3, 16)}, MXFP4, "m.a_scales is missing"),
        ({"a_scales": blocks(2, 4, 3)}, MXFP4, "m.a_blocks is missing"),
        (P["gptq"], None, "looks quantised (GPTQ or AWQ), but config.json has no quantization_config"),
        ({"weight": torch.zeros(4, 1), "weight.quant_state.bitsandbytes__nf4": torch.zeros(3)}, None, "(bitsandbytes)"),
        ({"Qidxs": torch.zeros(3)}, None, "(QuIP#)"),
    ],
)  # fmt: skip
def test_parts(tmp_path, parts, config, words):
    save_file({f"m.{kind}": part.contiguous() for kind, part in parts.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as e:
        decoded(open_source(str(tmp_path)), {"quantization_config": config})
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("parts", "config", "words"),
    [
        (other(P["gptq"], "g_idx", torch.full((96,), 3, dtype=torch.int32)), GPTQ, "names group 3 to 3; there are 3"),
        (other(P["packed"], "weight_shape", torch.tensor([40, 90])), ASYM, "weights that were padded"),
    ],
)
def test_what_only_reading_tells(tmp_path, parts, config, words):
    save_file({f"m.{kind}": part.contiguous() for kind, part in parts.items()}, tmp_path / "model.safetensors")
    source = decoded(open_source(str(tmp_path)), {"quantization_config": config})
    with pytest.raises(CheckpointError) as e:
        source.read("m.weight", (), torch.empty(40, 96))
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("quantise", "words"), [(gptq(order=1), "set desc_act to true"), (gptq(symmetric=False), "set sym to false")]
)
def test_codes_that_are_not_what_the_config_says(tmp_path, quantise, words):
    parts = quantise(weight())[0]
    save_file({f"m.{kind}": part.contiguous() for kind, part in parts.items()}, tmp_path / "model.safetensors")
    source = decoded(open_source(str(tmp_path)), {"quantization_config": GPTQ})
    with pytest.raises(CheckpointError) as e:
        source.read_codes("m.weight", (slice(0, 40),))
    assert words in str(e.value)
