"""A spec's parameters and their bytes, told without building the model: what the model has that is built from it."""

import json

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels.cpu.packed import packed_bytes
from moesaic.kernels.layouts import matrix_bytes
from moesaic.layers.base import BuildContext
from moesaic.layers.kv_cache import ExpertPagesSpec, StateSpec
from moesaic.models.backends import FAMILIES
from moesaic.models.caches import bytes_per_block, bytes_per_sequence
from moesaic.models.decoder import Decoder
from moesaic.models.load import spec_of
from moesaic.models.parameters import parameter_shapes, weight_bytes
from moesaic.models.spec import ExpertPagedAttentionSpec, LayerSpec, ModelSpec, NormSpec, RouterSpec
from moesaic.weights.quantization import QuantizationPlan
from tests.families import CONFIGS, VARIANTS
from tests.tiny_models import tiny_class, tiny_config

CASES = {**{family: (family, {}) for family in CONFIGS}, **VARIANTS}


def spec_of_family(family, **keys):
    config = tiny_config(family, **keys)
    values = json.loads(config.to_json_string())
    return spec_of({**values, "architectures": [tiny_class(config, family).__name__]})[1]


@pytest.mark.parametrize("case", CASES)
def test_parameters_of_every_family(case):
    family, keys = CASES[case]
    spec = spec_of_family(family, **keys)
    compare(spec)


@pytest.mark.parametrize("owned", ["qk", "qkvo"])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_of_experts_that_attend(owned, bias):
    attention = ExpertPagedAttentionSpec(
        num_experts=4,
        router=RouterSpec(top_k=2, bias=bias),
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        scale=0.25,
        rope=None,
        owned=owned,
        qkv_bias=bias,
        output_bias=bias,
    )
    compare(
        ModelSpec(
            vocab_size=96,
            hidden_size=64,
            max_position_embeddings=64,
            norm=NormSpec(eps=1e-6),
            tied_embeddings=True,
            layers=(LayerSpec(attention=attention, ffn=None),) * 2,
        )
    )


def compare(spec):
    model = Decoder(spec, BuildContext(torch.device("meta"), torch.bfloat16))
    assert parameter_shapes(spec) == {name: tuple(view.shape) for name, view in model.named_views()}
    for dtype in (torch.bfloat16, torch.int8):
        backends = dict.fromkeys(FAMILIES, "cpu")
        ctx = BuildContext(
            torch.device("meta"), torch.bfloat16, kv_dtype=dtype, backends={**backends, "matrices": "reference"}
        )
        caches, name = Decoder(spec, ctx).cache_specs(), str(dtype).removeprefix("torch.")
        assert bytes_per_block(spec, name) == sum(c.bytes_per_block(16) for c in caches if not isinstance(c, StateSpec))
        slots = [c.bytes_per_slot for c in caches if isinstance(c, StateSpec)]
        slots += [c.bytes_per_slot(16) for c in caches if isinstance(c, ExpertPagesSpec)]
        assert bytes_per_sequence(spec, name) == sum(slots)


@pytest.mark.parametrize("scheme", ["none", "w8a16", "w4a16", "w8a8"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe", "jamba", "dbrx"])
def test_bytes_are_those_that_the_model_takes(family, scheme, isa):
    spec = spec_of_family(family)
    plan = QuantizationPlan("bfloat16", scheme)
    ctx = BuildContext(
        torch.device("cpu"), torch.bfloat16, backends=dict.fromkeys(FAMILIES, "cpu"), formats=plan.format_of
    )
    assert (
        sum(weight_bytes(spec, plan.format_of, quads=isa == "avx512_bf16").values())
        == Decoder(spec, ctx).weight_bytes()
    )


@pytest.mark.parametrize("kind", ["f32", "bf16", "w8", "w4", "w8a8", "mxfp4"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (33, 7), (64, 128), (100, 200)])
def test_bytes_of_a_matrix(isa, kind, rows, cols):
    formats = [
        WeightFormat(kind, group, offsets) for group in (0, 32, 128) for offsets in (False, kind in ("w8", "w4"))
    ]
    for format in formats:
        for gated in (False, True):
            if not gated or rows % 2 == 0:
                expected = packed_bytes(rows, cols, format, gated)
                assert matrix_bytes(rows, cols, format, gated, quads=isa == "avx512_bf16") == expected
