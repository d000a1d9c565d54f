"""GLM-4-MoE-Lite (GLM-4.7-Flash): latent attention; DeepSeek-V3's router and shared expert."""

from moesaic.models.common import LATENT_DEEPSEEK_RULES, activation, decoder, deepseek_moe, kinds_of_layers, mla
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "Glm4MoeLiteForCausalLM"
MODEL_TYPE = "glm4_moe_lite"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    attention = mla(c)
    moe = deepseek_moe(c, scale=1.8)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=1)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < first else "sparse")
    ffns = [dense if kind == "dense" else moe for kind in kinds]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = [*LATENT_DEEPSEEK_RULES, ignore("model.layers.47.{any}", "a layer for speculation, of released models")]
