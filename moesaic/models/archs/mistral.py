"""Mistral: Llama with one sliding window for all layers; Ministral alternates windows."""

from dataclasses import replace

from moesaic.models.common import DECODER_RULES, DENSE_RULES, activation, decoder, gqa, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "MistralForCausalLM"
ALSO = {"MinistralForCausalLM": "ministral"}
MODEL_TYPE = "mistral"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    window = c.read(int | None, "sliding_window", absent=4096)
    attention = gqa(c, num_kv_heads=8)
    ffn = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    sizes = windows(c, window, sliding=lambda layer: window is not None)
    return decoder(c, [LayerSpec(attention=replace(attention, window=w), ffn=ffn) for w in sizes])


RULES = [*DECODER_RULES, *DENSE_RULES]
