"""dots.llm1: queries and keys normalised per head; DeepSeek-V3's router and shared experts; last layers may slide."""

from dataclasses import replace

from moesaic.models.common import DEEPSEEK_RULES, activation, decoder, deepseek_moe, gqa, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "Dots1ForCausalLM"
MODEL_TYPE = "dots1"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("moe_layer_freq", 1)
    window = c.read(int | None, "sliding_window", absent=4096)
    first_sliding = c.read(int | None, "max_window_layers", absent=62)
    attention = gqa(c, num_kv_heads=32, bias=c.read(bool, "attention_bias", absent=False), qk_norm="head")
    moe = deepseek_moe(c, experts="n_routed_experts", shared="n_shared_experts", num_shared=0, renormalize=False)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int | None, "first_k_dense_replace", absent=0) or 0
    sizes = windows(c, window, sliding=lambda layer: None not in (window, first_sliding) and layer >= first_sliding)
    return decoder(
        c,
        [
            LayerSpec(attention=replace(attention, window=w), ffn=dense if layer < first else moe)
            for layer, w in enumerate(sizes)
        ],
    )


RULES = DEEPSEEK_RULES
