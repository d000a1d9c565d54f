"""Mellum: Qwen3's queries, keys and router; sliding layers may rotate with a base of their own."""

from dataclasses import replace

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    activation,
    decoder,
    gqa,
    kinds_and_windows,
    kinds_of_layers,
    ropes,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "MellumForCausalLM"
MODEL_TYPE = "mellum"
THETAS = {"full_attention": 500000.0, "sliding_attention": 10000.0}


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    # Layers for speculation, which plain decoding leaves out.
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types")
    act = activation(c)
    bias = c.read(bool, "attention_bias", absent=False)
    attention = gqa(c, num_kv_heads=4, head_dim=128, rotary=False, bias=bias, qk_norm="head")
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=64),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=896),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8),
            renormalize=c.read(bool, "norm_topk_prob", absent=True),
        ),
        activation=act,
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    ffns = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse")
    kinds = kinds_and_windows(c, c.read(int | None, "sliding_window", absent=1024), sliding=lambda layer: False)
    used = {kind: THETAS[kind] for kind, _ in kinds}
    rotations = ropes(c, attention.head_dim, used)
    layers = [
        LayerSpec(attention=replace(attention, window=size, rope=rotations[kind]), ffn=dense if ffn == "dense" else moe)
        for (kind, size), ffn in zip(kinds, ffns, strict=True)
    ]
    return decoder(c, layers)


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, ignore("mtp.{any}", "layers for speculation")]
