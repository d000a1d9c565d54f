"""GLM-4-MoE (GLM-4.5 and after): half of a head rotates; DeepSeek-V3's router and shared expert."""

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
    num_layers,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "Glm4MoeForCausalLM"
MODEL_TYPE = "glm4_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")  # layers for speculation, which plain decoding leaves out
    attention = gqa(
        c,
        num_kv_heads=8,
        bias=c.read(bool, "attention_bias", absent=False),
        output_bias=False,
        qk_norm="head" if c.read(bool, "use_qk_norm", absent=False) else None,
        partial_rotary=0.5,
    )
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "n_routed_experts", "num_local_experts"),
        intermediate_size=size,
        router=deepseek_router(c),
        activation=act,
        shared=shared_experts(size, c.read(int, "n_shared_experts", absent=1), act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    first = c.read(int, "first_k_dense_replace", absent=1)
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


RULES = [
    *DECODER_RULES,
    *DENSE_RULES,
    *MLP_EXPERT_RULES,
    *CORRECTION_RULES,
    *SHARED_RULES,
    ignore("model.layers.{l}.{n}.shared_head.{p}", "a layer for speculation"),
]
