"""Mixtral: softmax router, always renormalised; a window, when set, in every layer."""

from moesaic.models.common import DECODER_RULES, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import experts, fused_experts, rename

ARCHITECTURE = "MixtralForCausalLM"
MODEL_TYPE = "mixtral"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    c.ignore("router_jitter_noise")  # added in training only
    attention = gqa(c, num_kv_heads=8, theta=1e6, window=c.read(int | None, "sliding_window", absent=None))
    ffn = MoESpec(
        num_experts=c.require(int, "num_local_experts", "num_experts"),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=2), renormalize=True),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


RULES = [
    *DECODER_RULES,
    rename("model.layers.{l}.block_sparse_moe.gate.weight", "layers.{l}.mlp.router.weight"),
    *experts("model.layers.{l}.block_sparse_moe.experts.{e}", gate="w1", up="w3", down="w2"),
    rename("model.layers.{l}.mlp.gate.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts("model.layers.{l}.mlp.experts.gate_up_proj", "model.layers.{l}.mlp.experts.down_proj"),
]
