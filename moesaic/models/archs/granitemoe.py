"""GraniteMoE, perhaps with a shared expert: the router keeps the best logits before its softmax; four multipliers."""

from moesaic.models.common import DECODER_RULES, decoder, gqa, num_layers, shared_experts
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, Multipliers, RouterSpec
from moesaic.weights.rules import Rule, fused_experts, rename

ARCHITECTURE = "GraniteMoeForCausalLM"
ALSO = {"GraniteMoeSharedForCausalLM": "granitemoeshared"}
MODEL_TYPE = "granitemoe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    c.refuse_unless("position_embedding_type", "rope", None)
    attention = gqa(
        c,
        bias=c.read(bool, "attention_bias", absent=False),
        scale=c.read(float, "attention_multiplier", absent=1.0),
    )
    shared = c.read(int, "shared_intermediate_size", absent=0)
    ffn = MoESpec(
        num_experts=c.read(int, "num_local_experts", absent=8),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=2), order="select_then_score"),
        shared=shared_experts(shared, 1) if shared else None,
    )
    multipliers = Multipliers(
        embedding=c.read(float, "embedding_multiplier", absent=1.0),
        residual=c.read(float, "residual_multiplier", absent=1.0),
        logits=1.0 / c.read(float, "logits_scaling", absent=1.0),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c), multipliers)


MOE, SHARED = "model.layers.{l}.block_sparse_moe", "layers.{l}.mlp.shared"
RULES = [
    *DECODER_RULES,
    rename(f"{MOE}.router.layer.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{MOE}.input_linear.weight", f"{MOE}.output_linear.weight"),
    rename(f"{MOE}.router.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{MOE}.experts.gate_up_proj", f"{MOE}.experts.down_proj"),
    Rule("model.layers.{l}.shared_mlp.input_linear.weight", f"{SHARED}.gate.weight", part=0, parts=2),
    Rule("model.layers.{l}.shared_mlp.input_linear.weight", f"{SHARED}.up.weight", part=1, parts=2),
    rename("model.layers.{l}.shared_mlp.output_linear.weight", f"{SHARED}.down.weight"),
]
