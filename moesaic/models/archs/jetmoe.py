"""JetMoE: attention and feed-forward are both mixtures of experts; queries and outputs of attention are the experts'
own, keys and values common to them."""

from moesaic.models.common import BASE_RULES, activation, decoder, num_layers, rope
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import ExpertAttentionSpec, LayerSpec, ModelSpec, MoESpec, NormSpec, RouterSpec
from moesaic.weights.rules import Rule, fused_experts, rename

ARCHITECTURE = "JetMoeForCausalLM"
MODEL_TYPE = "jetmoe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("aux_loss_coef")  # of training
    heads, top_k = c.read(int, "num_key_value_heads", absent=16), c.read(int, "num_experts_per_tok", absent=2)
    c.refuse_unless("num_attention_heads", heads * top_k)
    head_dim = c.read(int, "kv_channels", "head_dim", absent=128)
    num_experts = c.read(int, "num_local_experts", absent=8)
    router = RouterSpec(top_k=top_k, order="select_then_score")
    attention = ExpertAttentionSpec(
        num_experts=num_experts,
        router=router,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope(c, head_dim),
        output_bias=True,
    )
    ffn = MoESpec(
        num_experts=num_experts,
        intermediate_size=c.require(int, "intermediate_size"),
        router=router,
        activation=activation(c, "activation_function"),
        output_bias=True,
    )
    # The layers' norms do not follow rms_norm_eps, which is the last one's.
    layer = LayerSpec(attention=attention, ffn=ffn, norm=NormSpec(eps=1e-6))
    norm = NormSpec(eps=c.read(float, "rms_norm_eps", absent=1e-6))
    return decoder(c, [layer] * num_layers(c), norm=norm, tied=True)


LAYER, ATTENTION = "model.layers.{l}", "layers.{l}.attention"
RULES = [
    *BASE_RULES,
    rename(f"{LAYER}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename(f"{LAYER}.post_attention_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    Rule(f"{LAYER}.self_attention.kv_proj.weight", f"{ATTENTION}.k.weight", part=0, parts=2),
    Rule(f"{LAYER}.self_attention.kv_proj.weight", f"{ATTENTION}.v.weight", part=1, parts=2),
    rename(f"{LAYER}.self_attention.experts.router.layer.weight", f"{ATTENTION}.router.weight"),
    Rule(f"{LAYER}.self_attention.experts.input_linear.weight", f"{ATTENTION}.experts.{{e}}.up.weight", stacked="e"),
    Rule(f"{LAYER}.self_attention.experts.output_linear.weight", f"{ATTENTION}.experts.{{e}}.down.weight", stacked="e"),
    rename(f"{LAYER}.self_attention.experts.bias", f"{ATTENTION}.output_bias.weight"),
    rename(f"{LAYER}.mlp.router.layer.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{LAYER}.mlp.input_linear.weight", f"{LAYER}.mlp.output_linear.weight"),
    rename(f"{LAYER}.mlp.bias", "layers.{l}.mlp.output_bias.weight"),
]
