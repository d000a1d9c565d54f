"""MiMo-V2-Flash: sliding layers have sinks, twice the key heads and a rotary base of their own; values are narrower
than keys, and scaled; DeepSeek-V3's router."""

from dataclasses import replace

from moesaic.models.common import (
    DEEPSEEK_RULES,
    activation,
    decoder,
    deepseek_moe,
    gqa,
    kinds_and_windows,
    kinds_of_layers,
    ropes,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore, rename

ARCHITECTURE = "MiMoV2FlashForCausalLM"
MODEL_TYPE = "mimo_v2_flash"
THETAS = {"full_attention": 5_000_000.0, "sliding_attention": 10_000.0}


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    full = gqa(
        c,
        num_kv_heads=4,
        head_dim=192,
        rotary=False,
        bias=c.read(bool, "attention_bias", absent=False),
        output_bias=False,
        value_dim=c.read(int, "v_head_dim", absent=128),
        value_scale=c.read(float | None, "attention_value_scale", absent=0.707) or 1.0,
    )
    sliding = replace(full, num_kv_heads=2 * full.num_kv_heads, sinks=True)
    moe = deepseek_moe(c, experts="n_routed_experts", shared="n_shared_experts", num_shared=0)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    ffns = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse" if layer else "dense")
    kinds = kinds_and_windows(c, _window(c), sliding=lambda layer: bool(layer and (layer + 1) % 6))
    rotations = ropes(c, full.head_dim, {kind: THETAS[kind] for kind, _ in kinds}, partial=0.334)
    attentions = {"full_attention": full, "sliding_attention": sliding}
    layers = [
        LayerSpec(
            attention=replace(attentions[kind], window=size, rope=rotations[kind]),
            ffn=dense if ffn == "dense" else moe,
        )
        for (kind, size), ffn in zip(kinds, ffns, strict=True)
    ]
    return decoder(c, layers)


def _window(c: ConfigReader) -> int:
    """Tokens that a token sees in sliding layers; sliding_window_size counts those before it."""
    before, window = c.read(int | None, "sliding_window_size", absent=None), c.read(int, "sliding_window", absent=129)
    return int(window) if before is None else int(before) + 1


RULES = [
    *DEEPSEEK_RULES,
    rename("model.layers.{l}.self_attn.attention_sink_bias", "layers.{l}.attention.sinks"),
    ignore("model.mtp.{any}", "layers for speculation"),
]
