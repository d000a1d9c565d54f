"""EXAONE MoE: only sliding layers rotate; queries and keys normed per head; DeepSeek-V3's router and shared expert."""

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
    kinds_of_layers,
    num_layers,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec

ARCHITECTURE = "ExaoneMoeForCausalLM"
MODEL_TYPE = "exaone_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    window = c.read(int | None, "sliding_window", absent=4096)
    period = c.read(int | None, "sliding_window_pattern", absent=4)
    attention = gqa(c, num_kv_heads=32, qk_norm="head")
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=size,
        router=deepseek_router(c, scale=2.5),
        activation=act,
        shared=shared_experts(size, c.read(int, "num_shared_experts", absent=1), act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    first = c.read(int, "first_k_dense_replace", absent=1)
    ffns = kinds_of_layers(
        c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "dense" if layer < first else "sparse"
    )
    sizes = windows(c, window, sliding=lambda layer: bool(window and period and (layer + 1) % period))
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=sizes[i], rope=attention.rope if sizes[i] or not window else None),
                ffn=dense if ffns[i] == "dense" else moe,
            )
            for i in range(num_layers(c))
        ],
    )


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, *CORRECTION_RULES, *SHARED_RULES]
