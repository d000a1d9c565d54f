"""AFMoE (Trinity): gates on what attention gives; norms on both sides; only sliding layers rotate."""

from dataclasses import replace

from moesaic.models.common import (
    BASE_RULES,
    DENSE_RULES,
    MLP,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, GateSpec, LayerSpec, ModelSpec, MoESpec, Multipliers, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "AfmoeForCausalLM"
MODEL_TYPE = "afmoe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("load_balance_coeff", "use_grouped_mm")  # of training; of an implementation
    c.refuse_unless("route_norm", True)
    c.refuse_unless("score_func", "sigmoid")
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        c.refuse_unless(key, 1, None)
    act = activation(c)
    bias = c.read(bool, "attention_bias", absent=False)
    attention = gqa(c, head_dim=128, bias=bias, qk_norm="head", output_gate=GateSpec())
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=size,
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            scoring="sigmoid",
            correction=True,
            renormalize=True,
            epsilon=1e-20,
            scale=c.read(float, "route_scale", absent=1.0),
        ),
        activation=act,
        shared=shared_experts(size, c.read(int, "num_shared_experts", absent=2), act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    num_dense = c.read(int, "num_dense_layers", absent=1)
    every = c.positive("global_attn_every_n_layers", absent=4)
    window = c.read(int | None, "sliding_window", absent=1024)
    sizes = windows(c, window, sliding=lambda layer: bool((layer + 1) % every))
    scaled = c.read(bool, "mup_enabled", absent=False)
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=size, rope=attention.rope if size else None),
                ffn=dense if layer < num_dense else moe,
                norms="sandwich",
            )
            for layer, size in enumerate(sizes)
        ],
        Multipliers(embedding=c.require(int, "hidden_size") ** 0.5) if scaled else Multipliers(),
    )


LAYER = "model.layers.{l}"
RULES = [
    *BASE_RULES,
    rename(f"{LAYER}.self_attn.gate_proj.weight", "layers.{l}.attention.gate.weight"),
    rename(f"{LAYER}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename(f"{LAYER}.post_attention_layernorm.weight", "layers.{l}.attention_post_norm.weight"),
    rename(f"{LAYER}.pre_mlp_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    rename(f"{LAYER}.post_mlp_layernorm.weight", "layers.{l}.ffn_post_norm.weight"),
    *DENSE_RULES,
    *MLP_EXPERT_RULES,
    *SHARED_RULES,
    rename(f"{MLP}.router.gate.weight", "layers.{l}.mlp.router.weight"),
    rename(f"{MLP}.expert_bias", "layers.{l}.mlp.router.correction"),
]
