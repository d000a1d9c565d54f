"""Phi-MoE: sparsemixer routing, which weighs the second expert without the first; layer norms; biases."""

from moesaic.models.common import DECODER_RULES, MLP_EXPERT_RULES, activation, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, NormSpec, RouterSpec
from moesaic.weights.rules import experts, rename

ARCHITECTURE = "PhimoeForCausalLM"
ALSO = {"PhiMoEForCausalLM": "phimoe"}
MODEL_TYPE = "phimoe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("input_jitter_noise")  # multiplied with in training only
    c.refuse_unless("num_experts_per_tok", 2)  # the reference takes two, whatever this says
    c.ignore("original_max_position_embeddings")  # rope_scaling says it
    attention = gqa(
        c,
        num_kv_heads=8,
        theta=1000000.0,
        bias=c.read(bool, "attention_bias", absent=False),
        window=c.read(int | None, "sliding_window", absent=None),
    )
    ffn = MoESpec(
        num_experts=c.read(int, "num_local_experts", absent=16),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(top_k=2, scoring="sparsemixer", jitter=c.read(float, "router_jitter_noise", absent=0.01)),
        activation=activation(c),
    )
    return decoder(
        c,
        [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c),
        norm=NormSpec(eps=c.require(float, "rms_norm_eps"), kind="layer", bias=True),
        logits_bias=c.read(bool, "lm_head_bias", absent=False),
    )


MOE = "model.layers.{l}.block_sparse_moe"
RULES = [
    *DECODER_RULES,
    rename("model.norm.bias", "norm.bias"),
    rename("model.layers.{l}.input_layernorm.bias", "layers.{l}.attention_norm.bias"),
    rename("model.layers.{l}.post_attention_layernorm.bias", "layers.{l}.ffn_norm.bias"),
    *MLP_EXPERT_RULES,
    rename("model.layers.{l}.mlp.router.weight", "layers.{l}.mlp.router.weight"),
    rename(f"{MOE}.gate.weight", "layers.{l}.mlp.router.weight"),
    *experts(f"{MOE}.experts.{{e}}", gate="w1", up="w3", down="w2"),
]
