"""GraniteMoE, perhaps with a shared expert: the router keeps the best logits before its softmax; four multipliers."""

from moesaic.models.common import BLOCK_EXPERT_RULES, DECODER_RULES, decoder, gqa, num_layers, scaled, shared_experts
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec

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
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c), scaled(c))


RULES = [*DECODER_RULES, *BLOCK_EXPERT_RULES]
