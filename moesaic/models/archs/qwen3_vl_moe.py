"""Qwen3-VL with experts, its text: Qwen3's layers; weights of the chosen experts are always renormalised."""

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    decoder,
    gqa,
    language_model,
    some_dense,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import fused_experts

ARCHITECTURE = "Qwen3VLMoeForConditionalGeneration"
MODEL_TYPE = "qwen3_vl_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    c = language_model(c, *tokens, tied=False)
    c.refuse_unless("hidden_act", "silu")
    c.refuse_unless("norm_topk_prob", True)
    c.refuse_unless("sliding_window", None)
    attention = gqa(
        c,
        num_kv_heads=16,
        head_dim=128,
        theta=500000.0,
        bias=c.read(bool, "attention_bias", absent=False),
        qk_norm="head",
    )
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=60),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=1408),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=4), renormalize=True),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in some_dense(c, moe)])


EXPERTS = "model.layers.{l}.mlp.experts"
FUSED = fused_experts(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj", either=True)
SINGLE = [rule for rule in MLP_EXPERT_RULES if rule.stacked is None]
INNER = [rule for rule in DECODER_RULES if rule.source.startswith("model.")]
RULES = [
    *(rule for rule in DECODER_RULES if rule not in INNER),
    *under("model.language_model.", [*INNER, *DENSE_RULES, *SINGLE, *FUSED], instead_of="model."),
    *text_only("model.visual"),
]
