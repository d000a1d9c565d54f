"""Ernie 4.5 VL with experts, its text: Ernie 4.5's experts; beside them a checkpoint holds as many for images."""

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    kinds_of_layers,
    language_model,
    shared_experts,
    text_only,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import AnyRule, Rule, ignore

ARCHITECTURE = "Ernie4_5_VLMoeForConditionalGeneration"
MODEL_TYPE = "ernie4_5_vl_moe"
TOKENS = [f"{kind}{which}_token_id" for kind in ("image", "video") for which in ("", "_start", "_end")]


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(c, *TOKENS, tied=True)
    c.refuse_unless("use_bias", False)
    act = activation(c)
    sizes = c.require(list | int, "moe_intermediate_size")  # of experts for text, and for images
    size = sizes if isinstance(sizes, int) else int(sizes[0])
    moe = MoESpec(
        num_experts=c.require(int, "moe_num_experts", "num_experts"),
        intermediate_size=size,
        router=RouterSpec(
            top_k=c.require(int, "moe_k", "num_experts_per_tok"),
            correction=True,
            renormalize=True,
            floor=c.read(float, "moe_norm_min", absent=1e-12),
        ),
        activation=act,
        shared=shared_experts(size, c.read(int | None, "moe_num_shared_experts", absent=2) or 0, act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda layer: "sparse" if layer else "dense")
    attention = gqa(c, num_kv_heads=4, theta=500000.0, interleaved=True)
    return decoder(c, [LayerSpec(attention=attention, ffn=dense if kind == "dense" else moe) for kind in kinds])


ROUTED = [rule for rule in MLP_EXPERT_RULES if rule.source != f"{MLP}.gate.weight"]


def RULES(model: ModelSpec) -> list[AnyRule]:
    """Where the parameters lie."""
    count = max(layer.ffn.num_experts for layer in model.layers if isinstance(layer.ffn, MoESpec))
    correction = "layers.{l}.mlp.router.correction"
    return [
        *DECODER_RULES,
        *DENSE_RULES,
        *ROUTED,
        *SHARED_RULES,
        Rule(f"{MLP}.gate.weight", "layers.{l}.mlp.router.weight", transposed=True),
        Rule(f"{MLP}.moe_statics.e_score_correction_bias", correction, row=2),
        ignore(f"{MLP}.gate.weight_1", "it chooses for images"),
        *(ignore(f"{MLP}.experts.{e}.{{any}}", "for images") for e in range(count, 2 * count)),
        *text_only("vision_model", "model.vision_model", "model.vision_tower", "model.resampler_model"),
    ]
