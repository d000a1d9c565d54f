"""Laguna: gates on what each head gives; heads and rotation differ by kind of layer; the router's logits are capped."""

from dataclasses import replace

from moesaic.models.common import (
    DEEPSEEK_RULES,
    MLP,
    activation,
    decoder,
    for_each_layer,
    gqa,
    kinds_and_windows,
    kinds_of_layers,
    ropes_as_given,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, GateSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "LagunaForCausalLM"
MODEL_TYPE = "laguna"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("moe_apply_router_weight_on_input", False)
    act = activation(c)
    cap = c.read(float, "moe_router_logit_softcapping", absent=0.0)
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=256),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=512),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8),
            scoring="sigmoid",
            correction=True,
            renormalize=True,
            cap=cap if cap > 0 else None,
        ),
        activation=act,
        output_scale=c.read(float, "moe_routed_scaling_factor", absent=1.0),
        shared=shared_experts(c.read(int, "shared_expert_intermediate_size", absent=512), 1, act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    ffns = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse" if layer else "dense")
    return decoder(
        c,
        [LayerSpec(attention=a, ffn=dense if f == "dense" else moe) for a, f in zip(_attention(c), ffns, strict=True)],
    )


def _attention(c: ConfigReader) -> list[AttentionSpec]:
    """That of each layer."""
    gating = c.read(bool | str, "gating", absent=True)
    if gating not in (True, "per-head", "per-element"):
        raise c.error("gating", "must be true, per-head or per-element")
    gate = GateSpec(function="softplus", per="element" if gating == "per-element" else "head")
    bias = c.read(bool, "attention_bias", absent=False)
    plain = gqa(c, num_kv_heads=8, head_dim=128, rotary=False, bias=bias, qk_norm="head", output_gate=gate)
    heads = for_each_layer(c, "num_attention_heads_per_layer", plain.num_heads)
    kinds = kinds_and_windows(c, c.read(int, "sliding_window", absent=512), sliding=lambda layer: False)
    rotations = ropes_as_given(c, plain.head_dim, [kind for kind, _ in kinds], partial=1.0)
    return [
        replace(plain, num_heads=n, window=size, rope=rotations[kind])
        for n, (kind, size) in zip(heads, kinds, strict=True)
    ]


RULES = [
    *DEEPSEEK_RULES,
    rename("model.layers.{l}.self_attn.g_proj.weight", "layers.{l}.attention.gate.weight"),
    rename(f"{MLP}.experts.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
]
