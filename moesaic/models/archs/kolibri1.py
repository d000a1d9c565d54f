"""Kolibri: norms before and after each part; only sliding layers rotate; the correction is added to logits, whose
sigmoids weigh the experts."""

from dataclasses import replace

from moesaic.models.common import (
    BASE_RULES,
    CORRECTION_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "Kolibri1ForCausalLM"
MODEL_TYPE = "kolibri1"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("intermediate_size")  # no layer is dense
    act = activation(c)
    attention = gqa(c, num_kv_heads=4, head_dim=128, qk_norm="head")
    ffn = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=384),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=512),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=6),
            scoring="sigmoid",
            order="select_then_score",
            correction=True,
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
        activation=act,
        shared=shared_experts(c.read(int, "shared_expert_intermediate_size", absent=512), 1, act),
    )
    window = c.read(int, "sliding_window", absent=513)  # without one the reference does not run
    sizes = windows(c, window, sliding=lambda layer: bool((layer + 1) % 5))
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=size, rope=attention.rope if size else None),
                ffn=ffn,
                norms="sandwich",
            )
            for size in sizes
        ],
    )


LAYER = "model.layers.{l}"
RULES = [
    *BASE_RULES,
    rename(f"{LAYER}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename(f"{LAYER}.post_self_attn_layernorm.weight", "layers.{l}.attention_post_norm.weight"),
    rename(f"{LAYER}.post_attn_norm.weight", "layers.{l}.attention_post_norm.weight"),
    rename(f"{LAYER}.post_attention_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    rename(f"{LAYER}.post_mlp_layernorm.weight", "layers.{l}.ffn_post_norm.weight"),
    rename(f"{LAYER}.post_ffn_norm.weight", "layers.{l}.ffn_post_norm.weight"),
    *MLP_EXPERT_RULES,
    *CORRECTION_RULES,
    *SHARED_RULES,
    rename(f"{LAYER}.moe.router.expert_bias", "layers.{l}.mlp.router.correction"),
]
