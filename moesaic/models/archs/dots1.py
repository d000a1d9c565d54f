"""dots.llm1: queries and keys normalised per head; DeepSeek-V3's router and shared experts; last layers may slide."""

from dataclasses import replace

from moesaic.models.common import (
    CORRECTION_RULES,
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    deepseek_router,
    gqa,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec

ARCHITECTURE = "Dots1ForCausalLM"
MODEL_TYPE = "dots1"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    window = c.read(int | None, "sliding_window", absent=4096)
    first_sliding = c.read(int | None, "max_window_layers", absent=62)
    attention = gqa(c, num_kv_heads=32, bias=c.read(bool, "attention_bias", absent=False), qk_norm="head")
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "n_routed_experts", "num_local_experts"),
        intermediate_size=size,
        router=deepseek_router(c, renormalize=False),
        activation=act,
        shared=shared_experts(size, c.read(int | None, "n_shared_experts", absent=None) or 0, act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    first = c.read(int | None, "first_k_dense_replace", absent=0) or 0
    sizes = windows(c, window, sliding=lambda layer: None not in (window, first_sliding) and layer >= first_sliding)
    return decoder(
        c,
        [
            LayerSpec(attention=replace(attention, window=w), ffn=dense if layer < first else moe)
            for layer, w in enumerate(sizes)
        ],
    )


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, *CORRECTION_RULES, *SHARED_RULES]
