"""Which weight gets which format: schemes, patterns, and what is said of patterns that cannot be meant."""

import pytest

from moesaic.core.errors import ConfigError
from moesaic.core.formats import WeightFormat
from moesaic.weights.quantization import QuantizationPlan, fits

NAMES = [
    "embed.weight",
    "lm_head.weight",
    *(
        f"layers.{layer}.{name}.weight"
        for layer in range(12)
        for name in ("attention.q", "attention.o", "mlp.router", "mlp.experts.0.gate", "mlp.experts.11.down")
    ),
]


def plan(scheme="none", config=None, group_size=128, dtype="bfloat16"):
    return QuantizationPlan.read(dtype, scheme, group_size, config)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_without_quantisation_all_is_as_the_dtype_says(dtype):
    assert {plan(dtype=dtype).format_of(name).kind for name in NAMES} == {
        {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    }
    assert not plan(dtype=dtype).quantised


@pytest.mark.parametrize(
    ("scheme", "layer", "head"),
    [
        ("w8a16", WeightFormat("w8", 64), WeightFormat("w8", 64)),
        ("w4a16", WeightFormat("w4", 64, True), WeightFormat("w8", 64)),
        ("w8a8", WeightFormat("w8a8", 64), WeightFormat("w8", 64)),
    ],
)
def test_a_scheme_is_of_all_projections_and_the_head_has_eight_bits(scheme, layer, head):
    p = plan(scheme, group_size=64)
    assert p.quantised
    assert p.format_of("layers.3.mlp.experts.7.gate") == p.format_of("layers.3.attention.q.weight") == layer
    assert p.format_of("layers.10.mlp.down") == layer
    assert p.format_of("lm_head.weight") == head
    for kept in ("embed", "positions", "layers.3.mlp.router", "layers.3.mlp.shared_gate"):
        assert p.format_of(f"{kept}.weight") == WeightFormat("bf16")


def test_the_last_pattern_that_fits_decides():
    p = plan("w4a16", "layers.*.attention=w8a16, layers.0-1=none ,layers.1.attention.o=w4a16:32:symmetric,lm_head=none")
    assert p.format_of("layers.5.attention.q") == WeightFormat("w8")
    assert p.format_of("layers.5.mlp.experts.3.up") == WeightFormat("w4", 128, True)
    assert p.format_of("layers.0.attention.q") == p.format_of("layers.1.mlp.experts.3.up") == WeightFormat("bf16")
    assert p.format_of("layers.1.attention.o") == WeightFormat("w4", 32)
    assert p.format_of("lm_head") == WeightFormat("bf16")
    p.check(NAMES)


def test_exceptions_alone_and_as_json():
    p = plan(config='{"layers.*.mlp.experts": "w4a16:0", "lm_head": "w8a16:64:offsets"}')
    assert p.quantised
    assert p.format_of("layers.2.mlp.experts.1.down") == WeightFormat("w4", 0, True)
    assert p.format_of("lm_head") == WeightFormat("w8", 64, True)
    assert p.format_of("layers.2.attention.q") == WeightFormat("bf16")


def test_patterns():
    for pattern, name in (
        ("lm_head", "lm_head"),
        ("layers.*.mlp.experts.*", "layers.3.mlp.experts.7.gate"),
        ("layers.*.mlp.experts", "layers.13.mlp.experts.7.gate"),
        ("layers.0-3.attention.q.weight", "layers.2.attention.q"),
        ("layers.**.down", "layers.3.mlp.experts.7.down"),
        ("**.down", "layers.3.mlp.down"),
        ("**", "lm_head"),
        ("layers.1?.attention", "layers.12.attention.q"),
    ):
        assert fits(pattern, name), pattern
    for pattern, name in (
        ("layers.1", "layers.10.mlp.down"),
        ("layers.*.q", "layers.3.attention.q"),
        ("layers.0-3", "layers.4.mlp.down"),
        ("lm", "lm_head"),
        ("layers.3.mlp.down.x", "layers.3.mlp.down"),
    ):
        assert not fits(pattern, name), pattern


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "layers.*.mlp.expert=w8a16",
            r"'layers.\*.mlp.expert' fits no weight of this model .nearest: layers",
        ),
        ("layers.90=w8a16", "fits no weight"),
        ("embed=w8a16", "'embed' is about embed, which is never quantised"),
        ("**.router=w4a16", "never quantised"),
    ],
)
def test_a_pattern_that_means_nothing_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        plan("w8a16", config).check(NAMES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("lm_head", "cannot read"),
        ("lm_head=", "cannot read"),
        ("{", "no JSON object"),
        ('{"lm_head": 8}', "cannot read"),
        ("[1]", "cannot read"),
        ("lm_head=w8a17", "lm_head: unknown format 'w8a17': did you mean 'w8a16'"),
        ("lm_head=w8a16:48", "'48' is no option of w8a16"),
        ("lm_head=w8a8:offsets", "'offsets' is no option of w8a8"),
        ("lm_head=none:32", "none takes no options"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        plan(config=config)


def test_unknown_schemes_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="unknown quantization 'w4a8'"):
        plan("w4a8")
    with pytest.raises(ConfigError, match="got 256"):
        plan("w8a16", group_size=256)
