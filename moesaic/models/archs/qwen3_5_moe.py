"""Qwen3.5 with experts, its text: layers of the gated delta rule, whose projections lie by themselves, and of attention
with gates; norms are stored as their difference from 1."""

from moesaic.models.common import (
    DECODER_RULES,
    GATED_DELTA_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    decoder,
    delta_or_attention,
    experts_and_gated_one,
    gated_query_rules,
    language_model,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, LayerSpec, ModelSpec, NormSpec
from moesaic.weights.rules import AnyRule, ignore, packed, rename

ARCHITECTURE = "Qwen3_5MoeForCausalLM"
ALSO = {"Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe"}
MODEL_TYPE = "qwen3_5_moe_text"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(
        c, "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", tied=False
    )
    c.refuse_unless("hidden_act", "silu")
    c.ignore("mamba_ssm_dtype")  # states are kept in float32
    c.ignore("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")  # for speculation
    moe = experts_and_gated_one(c, num_experts=256, top_k=8)
    layers = [LayerSpec(attention=mixer, ffn=moe) for mixer in delta_or_attention(c)]
    return decoder(c, layers, norm=NormSpec(eps=c.read(float, "rms_norm_eps", absent=1e-6), offset=1.0))


LINEAR, OURS = "model.layers.{l}.linear_attn", "layers.{l}.attention"
PROJECTION_RULES = [
    *packed(f"{LINEAR}.in_proj_qkv.weight", *(f"{OURS}.{part}.weight" for part in "qkv")),
    rename(f"{LINEAR}.in_proj_z.weight", f"{OURS}.gate.weight"),
    rename(f"{LINEAR}.in_proj_b.weight", f"{OURS}.beta.weight"),
    rename(f"{LINEAR}.in_proj_a.weight", f"{OURS}.decay.weight"),
]


def RULES(model: ModelSpec) -> list[AnyRule]:
    """Where the parameters lie."""
    rules = [rule for rule in DECODER_RULES if rule.source != "model.layers.{l}.self_attn.q_proj.{p}"]
    rules += [*MLP_EXPERT_RULES, *SHARED_RULES, *GATED_DELTA_RULES, *PROJECTION_RULES]
    for mixer in {layer.attention for layer in model.layers}:
        if isinstance(mixer, AttentionSpec):
            rules += gated_query_rules(mixer)
    inner = [rule for rule in rules if rule.source.startswith("model.")]
    return [
        *rules,
        *under("model.language_model.", inner, instead_of="model."),
        ignore("model.visual.{any}", "images are not served"),
        ignore("mtp.{any}", "for speculation"),
    ]
