"""DeepSeek-V3 and Kimi K2: latent attention; experts chosen by sigmoids among the best groups, beside shared ones."""

from moesaic.models.common import LATENT_DEEPSEEK_RULES, activation, decoder, deepseek_moe, mla, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "DeepseekV3ForCausalLM"
ALSO = {"KimiK2ForCausalLM": "kimi_k2"}
MODEL_TYPE = "deepseek_v3"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("moe_layer_freq", 1)
    attention = mla(c)
    moe = deepseek_moe(c, scale=2.5)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=3)
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = [*LATENT_DEEPSEEK_RULES, ignore("model.layers.61.{any}", "a layer for speculation, of released models")]
