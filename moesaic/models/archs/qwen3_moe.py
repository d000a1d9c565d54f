"""Qwen3-MoE: queries and keys normalised per head; some layers may be dense."""

from moesaic.models.common import DECODER_RULES, DENSE_RULES, MLP_EXPERT_RULES, decoder, gqa, some_dense
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec

ARCHITECTURE = "Qwen3MoeForCausalLM"
MODEL_TYPE = "qwen3_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    window = c.read(int | None, "sliding_window", absent=4096)
    # The reference gives the window to every layer when it is used at all, whatever max_window_layers says.
    c.ignore("max_window_layers")
    attention = gqa(
        c,
        num_kv_heads=4,
        bias=c.read(bool, "attention_bias", absent=False),
        qk_norm="head",
        window=window if c.read(bool, "use_sliding_window", absent=False) else None,
    )
    moe = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=c.require(int, "moe_intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in some_dense(c, moe)])


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES]
