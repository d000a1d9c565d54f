"""Mistral 4: latent attention whose queries have a temperature; experts chosen by a softmax, beside shared ones."""

from dataclasses import replace

from moesaic.models.common import LATENT_DEEPSEEK_RULES, activation, decoder, deepseek_moe, mla, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "Mistral4ForCausalLM"
MODEL_TYPE = "mistral4"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    attention = mla(c, tuned=True)
    moe = deepseek_moe(c)
    router = replace(moe.router, scoring="softmax", correction=False, masked_score=0.0)
    moe = replace(moe, router=router)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int | None, "first_k_dense_replace", absent=0) or 0
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = LATENT_DEEPSEEK_RULES
