"""GLM-4-MoE (GLM-4.5 and after): half of a head rotates; DeepSeek-V3's router and shared expert."""

from moesaic.models.common import DEEPSEEK_RULES, activation, decoder, deepseek_moe, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "Glm4MoeForCausalLM"
MODEL_TYPE = "glm4_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    attention = gqa(
        c,
        num_kv_heads=8,
        bias=c.read(bool, "attention_bias", absent=False),
        output_bias=False,
        qk_norm="head" if c.read(bool, "use_qk_norm", absent=False) else None,
        partial_rotary=0.5,
    )
    moe = deepseek_moe(c, experts="n_routed_experts", shared="n_shared_experts", num_shared=1)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=1)
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = [
    *DEEPSEEK_RULES,
    # Of the released models, with 46 and 92 layers, one more is for speculation.
    ignore("model.layers.46.{any}", "a layer for speculation"),
    ignore("model.layers.92.{any}", "a layer for speculation"),
]
