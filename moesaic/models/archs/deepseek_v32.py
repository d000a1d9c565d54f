"""DeepSeek-V3.2: DeepSeek-V3 whose attention sees the positions alone that an indexer scores highest."""

from moesaic.models.common import (
    INDEXER_RULES,
    LATENT_DEEPSEEK_RULES,
    activation,
    decoder,
    deepseek_moe,
    indexer,
    kinds_of_layers,
    mla,
    num_layers,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "DeepseekV32ForCausalLM"
MODEL_TYPE = "deepseek_v32"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")  # layers for speculation, which plain decoding leaves out
    c.refuse_unless("layer_types", ["indexed_attention"] * num_layers(c), None)
    c.refuse_unless("moe_layer_freq", 1)
    c.refuse_unless("mlp_bias", False)
    c.refuse_unless("rope_interleave", True)
    attention = mla(c, interleaved=True, indexer=indexer(c, num_heads=64))
    moe = deepseek_moe(c, scale=2.5)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=3)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < first else "sparse")
    ffns = [dense if kind == "dense" else moe for kind in kinds]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = [
    *LATENT_DEEPSEEK_RULES,
    *INDEXER_RULES,
    ignore("model.layers.61.{any}", "a layer for speculation, of released models"),
]
