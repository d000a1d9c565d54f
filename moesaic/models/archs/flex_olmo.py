"""FlexOlmo: norms stand after attention and experts; queries and keys normalised over all heads together."""

from moesaic.models.common import BASE_RULES, MLP_EXPERT_RULES, activation, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "FlexOlmoForCausalLM"
MODEL_TYPE = "flex_olmo"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    attention = gqa(c, theta=500000.0, bias=c.read(bool, "attention_bias", absent=False), qk_norm="full")
    ffn = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
        activation=activation(c),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn, norms="post")] * num_layers(c))


RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.attention_post_norm.weight"),
    rename("model.layers.{l}.post_feedforward_layernorm.weight", "layers.{l}.ffn_post_norm.weight"),
    *MLP_EXPERT_RULES,
]
