"""Gemma 4, its text, dense or with experts beside the feed-forward, each behind norms of its own. Full layers have
wider heads, whose values may be their keys, and turn a part of them. Per-layer inputs, shared keys: not served."""

from dataclasses import replace

from moesaic.models.common import SANDWICH_RULES, activation, decoder, feed_forward, gqa, kinds_and_windows, ropes
from moesaic.models.common import overrides_of_layers as overrides
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    AttentionSpec,
    DenseSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    Multipliers,
    ProportionalScaling,
    RopeSpec,
    RouterSpec,
    SharedSpec,
)
from moesaic.weights.rules import fused_experts, rename

ARCHITECTURE = "Gemma4ForCausalLM"
MODEL_TYPE = "gemma4_text"
FULL, SLIDING = "full_attention", "sliding_attention"
ROPES = {FULL: RopeSpec(theta=1e6, scaling=ProportionalScaling(share=0.25)), SLIDING: RopeSpec(theta=1e4)}


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("use_bidirectional_attention", None, "vision")  # of images
    if c.read(int | None, "hidden_size_per_layer_input", absent=256):
        raise c.error("hidden_size_per_layer_input", "inputs of single layers are not supported; only 0 is")
    c.refuse_unless("num_kv_shared_layers", 0)
    c.ignore("vocab_size_per_layer_input", "use_double_wide_mlp")  # of both of these
    act = activation(c, "hidden_activation", absent="gelu_pytorch_tanh")
    ffn: DenseSpec | MoESpec = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    if c.read(bool, "enable_moe_block", absent=False):
        ffn = MoESpec(
            num_experts=c.require(int, "num_experts"),
            intermediate_size=c.require(int, "moe_intermediate_size"),
            router=RouterSpec(top_k=c.require(int, "top_k_experts"), renormalize=True, expert_scale=True),
            activation=act,
            shared=SharedSpec(ffn=ffn),
            norms="own",
        )
    else:
        c.ignore("num_experts", "moe_intermediate_size", "top_k_experts")
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
        of_full |= {"num_key_value_heads": full_heads} if full_heads else {}
    others = overrides(c, "head_dim", "num_key_value_heads") or [of_full if kind == FULL else {} for kind in kinds]
    names = {"head_dim": "head_dim", "num_key_value_heads": "num_kv_heads"}
    layers = [
        replace(of_kind[kind], **{names[key]: value for key, value in other.items()})
        for kind, other in zip(kinds, others, strict=True)
    ]
    dims = dict(zip(kinds, (layer.head_dim for layer in layers), strict=True))
    if any(layer.head_dim != dims[kind] for kind, layer in zip(kinds, layers, strict=True)):
        raise c.error("per_layer_config", "must give layers of the same kind heads of the same size")
    rotations = ropes(c, dims, dict.fromkeys(dims, None)) if "rope_parameters" in c else ROPES
    return [replace(layer, rope=rotations[kind]) for kind, layer in zip(kinds, layers, strict=True)]


LAYER = "model.layers.{l}"
NORMS = {"input": "pre_feedforward_layernorm_2", "output": "post_feedforward_layernorm_2"}
RULES = [
    *SANDWICH_RULES,
    *feed_forward(f"{LAYER}.mlp", "layers.{l}.mlp"),
    *feed_forward(f"{LAYER}.mlp", "layers.{l}.mlp.shared"),
    *fused_experts(f"{LAYER}.experts.gate_up_proj", f"{LAYER}.experts.down_proj"),
    *(rename(f"{LAYER}.{theirs}.weight", f"layers.{{l}}.mlp.{ours}_norm.weight") for ours, theirs in NORMS.items()),
    rename(f"{LAYER}.post_feedforward_layernorm_1.weight", "layers.{l}.mlp.shared_norm.weight"),
    rename(f"{LAYER}.router.proj.weight", "layers.{l}.mlp.router.weight"),
    rename(f"{LAYER}.router.per_expert_scale", "layers.{l}.mlp.router.expert_scale"),
    rename(f"{LAYER}.router.scale", "layers.{l}.mlp.router_norm.weight"),
    rename(f"{LAYER}.layer_scalar", "layers.{l}.scalar"),
]
