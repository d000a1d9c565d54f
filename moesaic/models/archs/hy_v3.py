"""Hunyuan 3: sigmoids with a correction choose the experts, whose weights always sum to the router's scale."""

from moesaic.models.common import (
    DEEPSEEK_RULES,
    activation,
    decoder,
    gqa,
    kinds_of_layers,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import ignore, rename

ARCHITECTURE = "HYV3ForCausalLM"
MODEL_TYPE = "hy_v3"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("enable_moe_fp32_combine")  # sums are in float32 here whatever it says
    act, bias = activation(c), c.read(bool, "mlp_bias", absent=False)
    attention = gqa(
        c,
        num_kv_heads=8,
        head_dim=128,
        theta=11_158_840.0,
        bias=c.read(bool, "attention_bias", absent=False),
        qk_norm="head",
    )
    size = c.read(int, "moe_intermediate_size", absent=1536)
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=192),
        intermediate_size=size,
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8),
            scoring="sigmoid",
            correction=True,
            renormalize=True,
            epsilon=1e-20,
            scale=c.read(float, "router_scaling_factor", absent=2.826),
        ),
        activation=act,
        shared=shared_experts(size, c.read(int, "num_shared_experts", absent=1), act, bias),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act, bias=bias)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse" if layer else "dense")
    return decoder(c, [LayerSpec(attention=attention, ffn=dense if kind == "dense" else moe) for kind in kinds])


RULES = [
    *DEEPSEEK_RULES,
    rename("model.layers.{l}.mlp.router.gate.weight", "layers.{l}.mlp.router.weight"),
    rename("model.layers.{l}.mlp.expert_bias", "layers.{l}.mlp.router.correction"),
    ignore("model.layers.80.{any}", "a layer for speculation: the released model has 80"),
]
