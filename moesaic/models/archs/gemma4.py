"""Gemma 4, its text, dense or with experts beside the feed-forward, each behind norms of its own. Full layers have
wider heads, whose values may be their keys, and turn a part of them. Per-layer inputs, shared keys: not served."""

from dataclasses import replace

from moesaic.models.common import (
    SANDWICH_RULES,
    activation,
    decoder,
    feed_forward,
    gqa,
    kinds_and_windows,
    language_model,
    overrides_of_layers,
    ropes,
    shared_experts,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec, MoESpec, Multipliers, RouterSpec
from moesaic.weights.rules import fused_experts, rename

ARCHITECTURE = "Gemma4ForCausalLM"
ALSO = {"Gemma4ForConditionalGeneration": "gemma4"}
MODEL_TYPE = "gemma4_text"
FULL, SLIDING = "full_attention", "sliding_attention"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    tokens = [f"{which}_token_id" for which in ("boi", "eoi", "image", "video", "boa", "audio")]
    c = language_model(c, "audio_config", "eoa_token_index", *tokens, tied=True)
    c.refuse_unless("use_bidirectional_attention", None, "vision")  # of images
    if c.read(int | None, "hidden_size_per_layer_input", absent=256):
        raise c.error("hidden_size_per_layer_input", "inputs of single layers are not supported; only 0 is")
    c.refuse_unless("num_kv_shared_layers", 0)
    c.ignore("vocab_size_per_layer_input", "use_double_wide_mlp")  # of both of these
    act = activation(c, "hidden_activation", absent="gelu_pytorch_tanh")
    size = c.require(int, "intermediate_size")
    ffn: DenseSpec | MoESpec = DenseSpec(intermediate_size=size, activation=act)
    c.ignore("num_experts", "moe_intermediate_size", "top_k_experts")  # where there is no block of them
    if c.read(bool, "enable_moe_block", absent=False):
        ffn = MoESpec(
            num_experts=c.require(int, "num_experts"),
            intermediate_size=c.require(int, "moe_intermediate_size"),
            router=RouterSpec(top_k=c.require(int, "top_k_experts"), renormalize=True, expert_scale=True),
            activation=act,
            shared=shared_experts(size, 1, act),
            norms="own",
        )
    cap = c.read(float | None, "final_logit_softcapping", absent=None)
    scale = Multipliers(embedding=c.require(int, "hidden_size") ** 0.5)
    layers = [LayerSpec(attention=a, ffn=ffn, norms="sandwich", scalar=True) for a in _attention(c)]
    return decoder(c, layers, scale, logits_softcap=cap, tied=True)


def _attention(c: ConfigReader) -> list[AttentionSpec]:
    """That of each layer; the last one is full whatever the config says."""
    kinds = [kind for kind, _ in kinds_and_windows(c, None, sliding=lambda layer: bool((layer + 1) % 6))]
    kinds[-1] = FULL
    bias, window = c.read(bool, "attention_bias", absent=False), c.positive("sliding_window", absent=512)
    plain = gqa(c, num_kv_heads=4, head_dim=256, rotary=False, scale=1.0, bias=bias, qk_norm="head", value_norm=True)
    of_kind = {FULL: plain, SLIDING: replace(plain, window=window)}
    of_full = {"head_dim": c.read(int, "global_head_dim", absent=512)}
    full_heads = c.read(int | None, "num_global_key_value_heads", absent=None)
    if c.read(bool, "attention_k_eq_v", absent=False):
        of_kind[FULL] = replace(plain, values="keys")
        of_full |= {"num_kv_heads": full_heads} if full_heads else {}
    others = overrides_of_layers(c, head_dim="head_dim", num_key_value_heads="num_kv_heads")
    others = others or [of_full if kind == FULL else {} for kind in kinds]
    layers = [replace(of_kind[kind], **other) for kind, other in zip(kinds, others, strict=True)]
    dims = dict(zip(kinds, (layer.head_dim for layer in layers), strict=True))
    if any(layer.head_dim != dims[kind] for kind, layer in zip(kinds, layers, strict=True)):
        raise c.error("per_layer_config", "must give layers of the same kind heads of the same size")
    if "rope_parameters" not in c:
        raise c.error("rope_parameters", "must say how each kind of layer rotates")
    rotations = ropes(c, dims, dict.fromkeys(dims, None))
    return [replace(layer, rope=rotations[kind]) for kind, layer in zip(kinds, layers, strict=True)]


LAYER = "model.layers.{l}"
OURS = "layers.{l}.mlp"
TEXT_RULES = [
    *SANDWICH_RULES,
    *feed_forward(f"{LAYER}.mlp", OURS),
    *feed_forward(f"{LAYER}.mlp", f"{OURS}.shared"),
    *fused_experts(f"{LAYER}.experts.gate_up_proj", f"{LAYER}.experts.down_proj"),
    rename(f"{LAYER}.pre_feedforward_layernorm_2.weight", f"{OURS}.input_norm.weight"),
    rename(f"{LAYER}.post_feedforward_layernorm_1.weight", f"{OURS}.shared_norm.weight"),
    rename(f"{LAYER}.post_feedforward_layernorm_2.weight", f"{OURS}.output_norm.weight"),
    rename(f"{LAYER}.router.proj.weight", f"{OURS}.router.weight"),
    rename(f"{LAYER}.router.per_expert_scale", f"{OURS}.router.expert_scale"),
    rename(f"{LAYER}.router.scale", f"{OURS}.router_norm.weight"),
    rename(f"{LAYER}.layer_scalar", "layers.{l}.scalar"),
]
TOWERS = [f"model.{part}" for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")]
RULES = [*TEXT_RULES, *under("model.language_model.", TEXT_RULES, instead_of="model."), *text_only(*TOWERS)]
