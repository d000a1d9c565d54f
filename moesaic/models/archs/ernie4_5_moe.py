"""Ernie 4.5 MoE: neighbours rotate; softmax scores with a correction for the choice, renormalised over at least a
smallest sum; shared experts."""

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    num_layers,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import Rule, ignore

ARCHITECTURE = "Ernie4_5_MoeForCausalLM"
MODEL_TYPE = "ernie4_5_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    c.ignore("moe_capacity")  # for training
    c.refuse_unless("moe_gate", "topk")
    c.refuse_unless("moe_use_aux_free", True)
    bias = c.read(bool | None, "use_bias", absent=False) or False
    attention = gqa(c, num_kv_heads=4, theta=500000.0, bias=bias, interleaved=True)
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "moe_num_experts", "num_experts"),
        intermediate_size=size,
        router=RouterSpec(
            top_k=c.require(int, "moe_k", "num_experts_per_tok"),
            correction=True,
            renormalize=True,
            floor=c.read(float, "moe_norm_min", absent=1e-12),
        ),
        activation=act,
        shared=shared_experts(size, c.read(int | None, "moe_num_shared_experts", absent=2) or 0, act, bias),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act, bias=bias)
    first = c.read(int, "moe_layer_start_index", absent=1)
    last = c.read(int, "moe_layer_end_index", absent=-1)
    last = num_layers(c) - 1 if last == -1 else last
    interval = c.read(int, "moe_layer_interval", absent=1)
    if interval < 1:
        raise c.error("moe_layer_interval", "must be at least 1")
    ffns = [moe if first <= i <= last and (i + 1) % interval == 0 else dense for i in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns], tied=True, logits_bias=bias)


RULES = [
    *DECODER_RULES,
    *DENSE_RULES,
    *MLP_EXPERT_RULES,
    *SHARED_RULES,
    ignore("model.mtp_{any}", "layers that speculate on further tokens"),
    Rule("model.layers.{l}.mlp.gate.moe_statics.e_score_correction_bias", "layers.{l}.mlp.router.correction", row=1),
    Rule("model.layers.{l}.mlp.moe_statics.e_score_correction_bias", "layers.{l}.mlp.router.correction", row=1),
]
