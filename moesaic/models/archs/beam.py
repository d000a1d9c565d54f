"""Beam: gates on what attention gives; layers without rotation let queries grow; the residual stream is a sum over the
root of how many it is of; the router's scale follows the experts."""

from dataclasses import replace

from moesaic.models.common import (
    CORRECTION_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    SANDWICH_RULES,
    activation,
    decoder,
    gqa,
    kinds_and_windows,
    kinds_of_layers,
    num_layers,
    ropes,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, GateSpec, LayerSpec, ModelSpec, MoESpec, QueryTemperature, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "BeamForCausalLM"
MODEL_TYPE = "beam"
THETAS = {"sliding_attention": 10000.0, "full_attention": None}


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act, last = activation(c), num_layers(c) - 1
    bias = c.read(bool, "attention_bias", absent=False)
    gate = GateSpec(head_bias=True)
    plain = gqa(c, num_kv_heads=8, head_dim=128, rotary=False, bias=bias, qk_norm="head", output_gate=gate)
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", absent=256),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=2560),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8),
            scoring="sigmoid",
            correction=True,
            num_groups=c.read(int, "n_group", absent=8),
            top_groups=c.read(int, "topk_group", absent=4),
            renormalize=c.read(bool, "norm_topk_prob", absent=True),
            epsilon=1e-20,
        ),
        activation=act,
        output_scale=c.read(float, "routed_scaling_factor", absent=2.5),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    ffns = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < 3 else "sparse")
    window = c.read(int | None, "sliding_window", absent=512)
    kinds = kinds_and_windows(c, window, sliding=lambda layer: bool((layer + 1) % 6) and layer != last)
    rotations = ropes(c, plain.head_dim, {kind: THETAS[kind] for kind, _ in kinds})
    grown = replace(plain, temperature=QueryTemperature(scale=0.1, period=2048, offset=1, growth="power"))
    layers = [
        LayerSpec(
            attention=replace(grown if rotations[kind] is None else plain, window=size, rope=rotations[kind]),
            ffn=dense if ffn == "dense" else moe,
            norms="sandwich",
        )
        for (kind, size), ffn in zip(kinds, ffns, strict=True)
    ]
    cap = c.read(float | None, "final_logit_softcapping", absent=30.0)
    return decoder(c, layers, logits_softcap=cap, residual="root_mean")


ATTENTION = "model.layers.{l}.self_attn"
RULES = [
    *SANDWICH_RULES,
    *DENSE_RULES,
    *MLP_EXPERT_RULES,
    *CORRECTION_RULES,
    rename(f"{ATTENTION}.gate_proj.weight", "layers.{l}.attention.gate.weight"),
    rename(f"{ATTENTION}.gate_bias", "layers.{l}.attention.gate.head_bias"),
]
