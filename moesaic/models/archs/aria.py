"""Aria, its text: the best logits are kept before the softmax; experts are stored transposed; shared experts."""

from moesaic.models.common import (
    DECODER_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    language_model,
    num_layers,
    shared_experts,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import fused_experts, rename

ARCHITECTURE = "AriaTextForCausalLM"
ALSO = {"AriaForConditionalGeneration": "aria"}
MODEL_TYPE = "aria_text"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(
        c, "image_token_index", "vision_feature_layer", "projector_patch_to_query_dict",
        "max_value_projector_patch_to_query_dict", tied=False,
    )  # fmt: skip
    c.ignore("pretraining_tp")
    size, bias = c.require(int, "intermediate_size"), c.read(bool, "mlp_bias", absent=False)
    attention = gqa(c, bias=c.read(bool, "attention_bias", absent=False))
    ffn = MoESpec(
        num_experts=c.read(int, "moe_num_experts", absent=8),
        intermediate_size=size,
        router=RouterSpec(top_k=c.read(int, "moe_topk", absent=2), order="select_then_score"),
        shared=shared_experts(size, c.read(int, "moe_num_shared_experts", absent=2), activation(c), bias),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


MLP = "model.layers.{l}.mlp"
TEXT_RULES = [
    *DECODER_RULES,
    *SHARED_RULES,
    rename(f"{MLP}.router.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{MLP}.experts.fc1.weight", f"{MLP}.experts.fc2.weight", transposed=True),
]
RULES = [
    *TEXT_RULES,
    *under("language_model.", TEXT_RULES),
    *text_only("vision_tower", "multi_modal_projector"),
]
