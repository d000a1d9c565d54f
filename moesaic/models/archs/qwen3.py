"""Qwen3, dense: Llama with queries and keys normalised per head."""

from dataclasses import replace

from moesaic.models.common import DECODER_RULES, DENSE_RULES, activation, decoder, gqa, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    used = c.read(bool, "use_sliding_window", absent=False)
    window = c.read(int | None, "sliding_window", absent=4096)
    first = c.read(int, "max_window_layers", absent=28)
    attention = gqa(c, num_kv_heads=32, head_dim=128, bias=c.read(bool, "attention_bias", absent=False), qk_norm="head")
    ffn = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    layers = windows(c, window if used else None, sliding=lambda layer: used and window is not None and layer >= first)
    return decoder(c, [LayerSpec(attention=replace(attention, window=w), ffn=ffn) for w in layers])


RULES = [*DECODER_RULES, *DENSE_RULES]
