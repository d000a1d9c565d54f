"""Kimi Linear: three layers of four keep a state by the delta rule with decays for each channel (KDA), the others have
latent attention without positions; DeepSeek's experts."""

from dataclasses import replace

from moesaic.models.common import (
    LATENT_DEEPSEEK_RULES,
    activation,
    decoder,
    deepseek_moe,
    feed_forward,
    kinds_of_layers,
    mla,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, GatedDeltaSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import experts, packed, rename

ARCHITECTURE = "KimiLinearForCausalLM"
MODEL_TYPE = "kimi_linear"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.call(max_position_embeddings="model_max_length", norm_topk_prob="moe_renormalize", n_group="num_expert_group")
    c.call(num_experts_per_tok="num_experts_per_token", n_shared_experts="num_shared_experts")
    for key, value in {"hidden_act": "silu", "mla_use_nope": True, "moe_layer_freq": 1}.items():
        c.refuse_unless(key, value)
    c.refuse_unless("moe_router_activation_func", "sigmoid")
    c.ignore("use_grouped_topk")  # the numbers of groups say it
    linear = c.child("linear_attn_config")
    delta, listed = _delta(c, linear), linear.read(list | None, "full_attn_layers", absent=None)
    linear.ignore("kda_layers")  # the others
    mixers = {"linear_attention": delta, "full_attention": replace(mla(c), rope=None)}

    def kind(layer: int) -> str:
        attends = layer + 1 in listed if listed else layer > 0 and layer % 4 == 0
        return "full_attention" if attends else "linear_attention"

    kinds = kinds_of_layers(c, "layer_types", tuple(mixers), kind)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    ffns = {"sparse": deepseek_moe(c, experts="num_experts", scale=2.446), "dense": dense}
    first = c.read(int, "first_k_dense_replace", absent=1)
    of_layers = kinds_of_layers(c, "mlp_layer_types", tuple(ffns), lambda la: "dense" if la < first else "sparse")
    return decoder(c, [LayerSpec(attention=mixers[k], ffn=ffns[f]) for k, f in zip(kinds, of_layers, strict=True)])


def _delta(c: ConfigReader, linear: ConfigReader) -> GatedDeltaSpec:
    """Sizes are the config's own, or in a part of it, which is what counts then."""
    heads = linear.read(int, "num_heads", absent=c.read(int, "linear_num_heads", absent=32))
    dim = linear.read(int, "head_dim", absent=c.read(int, "linear_head_dim", absent=128))
    width = c.read(int, "linear_conv_kernel_dim", absent=4)
    return GatedDeltaSpec(
        num_key_heads=heads,
        num_heads=heads,
        key_dim=dim,
        value_dim=dim,
        conv_width=linear.read(int, "short_conv_kernel_size", absent=width),
        decay="channel",
        gate="sigmoid",
        rank=dim,
    )


ATTENTION, OURS = "model.layers.{l}.self_attn", "layers.{l}.attention"
BLOCK, MLP = "model.layers.{l}.block_sparse_moe", "layers.{l}.mlp"
NAMES = {
    "b_proj": "beta",
    "f_a_proj": "decay.down",
    "f_b_proj": "decay.up",
    "g_a_proj": "gate.down",
    "g_b_proj": "gate.up",
}
RULES = [
    *LATENT_DEEPSEEK_RULES,
    *(rename(f"{ATTENTION}.{theirs}.weight", f"{OURS}.{ours}.weight") for theirs, ours in NAMES.items()),
    *(rename(f"{ATTENTION}.{part}_conv1d.weight", f"{OURS}.conv.{part}.weight") for part in "qkv"),
    *packed(f"{ATTENTION}.conv1d.weight", *(f"{OURS}.conv.{part}.weight" for part in "qkv")),
    rename(f"{ATTENTION}.A_log", f"{OURS}.rate"),
    rename(f"{ATTENTION}.dt_bias", f"{OURS}.decay_bias"),
    rename(f"{ATTENTION}.o_norm.weight", f"{OURS}.norm.weight"),
    rename(f"{BLOCK}.gate.weight", f"{MLP}.router.weight"),
    rename(f"{BLOCK}.gate.e_score_correction_bias", f"{MLP}.router.correction"),
    *experts(f"{BLOCK}.experts.{{e}}", gate="w1", up="w3", down="w2"),
    *feed_forward(BLOCK, MLP),
    *feed_forward(f"{BLOCK}.shared_experts", f"{MLP}.shared"),
]
