"""Step 3.7, its text: gates on what each head gives, more heads in sliding layers, activations clamped in some."""

from dataclasses import replace
from typing import Any

from moesaic.models.common import (
    DEEPSEEK_RULES,
    activation,
    decoder,
    feed_forward,
    for_each_layer,
    gqa,
    kinds_and_windows,
    kinds_of_layers,
    language_model,
    ropes_as_given,
    shared_experts,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, GateSpec, LayerSpec, ModelSpec, MoESpec, NormSpec, RouterSpec
from moesaic.weights.rules import Rule, rename

ARCHITECTURE = "Step3p7ForConditionalGeneration"
MODEL_TYPE = "step3p7"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(c, "image_token_id", "projector_bias", tied=False)
    c.call(num_experts="n_routed_experts", num_local_experts="n_routed_experts")
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types")  # layers for speculation
    activation(c)
    layers = [LayerSpec(attention=a, ffn=ffn) for a, ffn in zip(_attention(c), _feed_forwards(c), strict=True)]
    return decoder(c, layers, norm=NormSpec(eps=c.require(float, "rms_norm_eps"), offset=1.0))


def _attention(c: ConfigReader) -> list[AttentionSpec]:
    """That of each layer."""
    c.refuse_unless("gating", True, "per-head")
    c.refuse_unless("use_bidirectional_attention", False)
    scalar = c.read(float | None, "query_pre_attn_scalar", absent=None)
    bias = c.read(bool, "attention_bias", absent=False)
    full = gqa(
        c, num_kv_heads=8, head_dim=128, rotary=False, bias=bias, qk_norm="head", output_gate=GateSpec(per="head"),
        scale=None if scalar is None else scalar**-0.5,
    )  # fmt: skip
    heads = c.read(int | None, "num_sliding_attention_heads", absent=None) or full.num_heads
    kinds = kinds_and_windows(c, c.read(int | None, "sliding_window", absent=None), sliding=lambda layer: False)
    same = {str(i): {"num_attention_heads": heads} for i, (kind, _) in enumerate(kinds) if kind == "sliding_attention"}
    c.refuse_unless("per_layer_config", same)
    rotations = ropes_as_given(c, full.head_dim, [kind for kind, _ in kinds], partial=1.0)
    attentions = {"full_attention": full, "sliding_attention": replace(full, num_heads=heads)}
    return [replace(attentions[kind], window=window, rope=rotations[kind]) for kind, window in kinds]


def _feed_forwards(c: ConfigReader) -> list[DenseSpec | MoESpec]:
    """That of each layer."""
    bias = c.read(bool, "mlp_bias", absent=False)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), bias=bias)
    shared: Any = shared_experts(c.read(int, "share_expert_dim", absent=1280), 1, bias=bias)
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", absent=288),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=1280),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8), scoring="sigmoid", correction=True, renormalize=True
        ),
        output_scale=c.read(float, "moe_router_scaling_factor", absent=1.0),
    )
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse" if layer > 2 else "dense")
    limits = [for_each_layer(c, key, None) for key in ("swiglu_limits", "swiglu_limits_shared")]
    return [
        _clamped(dense, common)
        if kind == "dense"
        else replace(_clamped(moe, routed), shared=replace(shared, ffn=_clamped(shared.ffn, common)))
        for kind, routed, common in zip(kinds, *limits, strict=True)
    ]


def _clamped(ffn: Any, limit: float | None) -> Any:
    return replace(ffn, activation="silu_clamped", limit=float(limit)) if limit else ffn


MOE, OURS = "model.layers.{l}.moe", "layers.{l}.mlp"
TEXT_RULES = [
    *DEEPSEEK_RULES,
    rename("model.layers.{l}.self_attn.g_proj.weight", "layers.{l}.attention.gate.weight"),
    rename(f"{MOE}.gate.weight", f"{OURS}.router.weight"),
    rename(f"{MOE}.router_bias", f"{OURS}.router.correction"),
    *(Rule(f"{MOE}.{p}_proj.weight", f"{OURS}.experts.{{e}}.{p}.weight", stacked="e") for p in ("gate", "up", "down")),
    *feed_forward("model.layers.{l}.share_expert", f"{OURS}.shared"),
]
RULES = [
    *TEXT_RULES,
    *under("model.language_model.", TEXT_RULES, instead_of="model."),
    *text_only("vision_model", "vit_large_projector", "model.vision_model", "model.multi_modal_projector"),
]
