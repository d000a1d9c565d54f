"""Llama 4, its text: layers that rotate see their own chunk of positions, the others everything with a temperature; a
router's weight scales what its expert is given."""

from dataclasses import replace

from moesaic.models.common import (
    DECODER_RULES,
    activation,
    decoder,
    feed_forward,
    gqa,
    kinds_of_layers,
    language_model,
    num_layers,
    shared_experts,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec, MoESpec, QueryTemperature, RouterSpec
from moesaic.weights.rules import fused_experts, rename

ARCHITECTURE = "Llama4ForCausalLM"
ALSO = {"Llama4ForConditionalGeneration": "llama4"}
MODEL_TYPE = "llama4_text"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(c, "image_token_index", "image_token_id", "boi_token_index", "eoi_token_index")
    c.ignore("router_jitter_noise")  # added in training only
    c.ignore("for_llm_compressor", "cache_implementation")
    act = activation(c)
    size = c.require(int, "intermediate_size")
    moe = MoESpec(
        num_experts=c.read(int, "num_local_experts", "num_experts", absent=16),
        intermediate_size=size,
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=1), scoring="sigmoid", order="select_then_score"
        ),
        activation=act,
        weight_on_input=True,
        shared=shared_experts(size, 1, act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size_mlp"), activation=act)
    step = c.positive("interleave_moe_layer_step", absent=1)
    given = c.read(list | None, "moe_layers", absent=None)
    sparse = range(step - 1, num_layers(c), step) if given is None else given
    ffns = [moe if layer in sparse else dense for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=a, ffn=ffn) for a, ffn in zip(_attention(c), ffns, strict=True)])


def _attention(c: ConfigReader) -> list[AttentionSpec]:
    """That of each layer."""
    every = c.positive("no_rope_layer_interval", absent=4)
    rotates = c.read(list | None, "no_rope_layers", absent=None) or [  # 1 where positions do show
        bool((layer + 1) % every) for layer in range(num_layers(c))
    ]
    if len(rotates) < num_layers(c):
        raise c.error("no_rope_layers", f"has {len(rotates)} entries for {num_layers(c)} layers")
    known = ("chunked_attention", "full_attention")
    kinds = kinds_of_layers(c, "layer_types", known, lambda layer: known[0] if rotates[layer] else known[1])
    c.ignore("attention_chunk_size")  # read where a layer has chunks
    chunk = c.positive("attention_chunk_size", absent=8192) if known[0] in kinds else None
    scale, period = c.read(float, "attn_scale", absent=0.1), c.positive("floor_scale", absent=8192)
    temperature = QueryTemperature(scale=scale, period=period, offset=1)
    plain = gqa(
        c,
        num_kv_heads=8,
        head_dim=128,
        theta=500000.0,
        bias=c.read(bool, "attention_bias", absent=False),
        interleaved=True,
        qk_norm="unit" if c.read(bool, "use_qk_norm", absent=True) else None,
        qk_norm_last=True,
        window_kind="chunked",
    )
    tuned = c.read(bool | int, "attn_temperature_tuning", absent=True)
    without_rope = replace(plain, rope=None, qk_norm=None, temperature=temperature if tuned else None)
    return [
        replace(plain if rope else without_rope, window=chunk if kind == known[0] else None)
        for rope, kind in zip(rotates, kinds, strict=False)
    ]


MLP = "model.layers.{l}.feed_forward"
TEXT_RULES = [
    *DECODER_RULES,
    rename(f"{MLP}.router.weight", "layers.{l}.mlp.router.weight"),
    *feed_forward(MLP, "layers.{l}.mlp"),
    *feed_forward(f"{MLP}.shared_expert", "layers.{l}.mlp.shared"),
    *fused_experts(f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj", transposed=True),
]
RULES = [
    *TEXT_RULES,
    *under("language_model.", TEXT_RULES),
    *text_only("vision_model", "multi_modal_projector"),
]
