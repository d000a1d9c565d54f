"""What architectures share: the pieces of a spec that most configs name alike, and rules for the usual tensor names."""

import math

from moesaic.core.errors import UnsupportedError
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    AttentionSpec,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    ModelSpec,
    Multipliers,
    RopeSpec,
    YarnScaling,
)
from moesaic.weights.rules import experts, fused_experts, ignore, rename, tied

DECODER_RULES = [
    rename("model.embed_tokens.weight", "embed.weight"),
    rename("model.norm.weight", "norm.weight"),
    rename("lm_head.weight", "lm_head.weight"),
    tied("lm_head.weight", "embed.weight"),
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    *(
        rename(f"model.layers.{{l}}.self_attn.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}")
        for part in "qkvo"
    ),
    rename("model.layers.{l}.self_attn.{n}_norm.weight", "layers.{l}.attention.{n}_norm.weight"),
    ignore("model.layers.{l}.self_attn.rotary_emb.inv_freq", "a buffer of old versions, computed here"),
]
DENSE_RULES = [
    rename(f"model.layers.{{l}}.mlp.{part}_proj.{{p}}", f"layers.{{l}}.mlp.{part}.{{p}}")
    for part in ("gate", "up", "down")
]
MLP = "model.layers.{l}.mlp"
MLP_EXPERT_RULES = [  # one tensor an expert, or all of a layer stacked: save_pretrained has written both
    rename(f"{MLP}.gate.weight", "layers.{l}.mlp.router.weight"),
    *experts(f"{MLP}.experts.{{e}}", gate="gate_proj", up="up_proj", down="down_proj"),
    *fused_experts(f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"),
]

NEUTRAL = Multipliers()


def decoder(c: ConfigReader, layers: list[LayerSpec], multipliers: Multipliers = NEUTRAL) -> ModelSpec:
    """The model around its layers."""
    c.refuse_unless("is_encoder_decoder", False)
    c.refuse_unless("add_cross_attention", False)
    c.ignore("cross_attention_hidden_size", "tie_encoder_decoder")
    return ModelSpec(
        vocab_size=c.require(int, "vocab_size"),
        hidden_size=c.require(int, "hidden_size"),
        max_position_embeddings=c.require(int, "max_position_embeddings"),
        norm_eps=c.require(float, "rms_norm_eps"),
        tied_embeddings=c.read(bool, "tie_word_embeddings", absent=False),
        layers=tuple(layers),
        multipliers=multipliers,
    )


def num_layers(c: ConfigReader) -> int:
    """How many decoder layers."""
    return int(c.require(int, "num_hidden_layers"))


def rope(c: ConfigReader, head_dim: int, theta: float = 10000.0) -> RopeSpec:
    """Rotary positions, as transformers 5 spells them (rope_parameters) or 4 (rope_theta and rope_scaling).

    Args:
        theta: of the architecture's config class, for a config that names none.
    """
    if head_dim % 2:
        raise UnsupportedError(f"{c.path}: rotary positions need an even head dimension, got {head_dim}")
    top_theta = c.read(float, "rope_theta", absent=theta)
    c.refuse_unless("partial_rotary_factor", 1, None)
    r = c.child("rope_parameters", "rope_scaling")
    r.refuse_unless("partial_rotary_factor", 1, None)
    name = r.read(str, "rope_type", "type", absent="default")
    theta = r.read(float, "rope_theta", absent=top_theta)
    if name == "default":
        return RopeSpec(theta=theta)
    if name not in _SCALINGS:
        known = ", ".join(["default", *_SCALINGS])
        raise UnsupportedError(f"{c.path}: rope type {name!r} is not supported; known are {known}")
    max_position = c.require(int, "max_position_embeddings")
    return RopeSpec(theta=theta, scaling=_SCALINGS[name](r, max_position))


def _linear(r: ConfigReader, max_position: int) -> LinearScaling:
    r.ignore("original_max_position_embeddings")
    return LinearScaling(factor=r.require(float, "factor"))


def _llama3(r: ConfigReader, max_position: int) -> Llama3Scaling:
    return Llama3Scaling(
        factor=r.require(float, "factor"),
        low_freq_factor=r.require(float, "low_freq_factor"),
        high_freq_factor=r.require(float, "high_freq_factor"),
        original_max_position=r.read(int, "original_max_position_embeddings", absent=max_position),
    )


def _yarn(r: ConfigReader, max_position: int) -> YarnScaling:
    original = r.read(int, "original_max_position_embeddings", absent=max_position)
    factor = r.read(float | None, "factor", absent=None) or max_position / original
    mscale = r.read(float | None, "mscale", absent=None)
    mscale_all = r.read(float | None, "mscale_all_dim", absent=None)
    by_default = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor, 1)
    attention_factor = r.read(float | None, "attention_factor", absent=None)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=by_default if attention_factor is None else attention_factor,
        beta_fast=r.read(float | None, "beta_fast", absent=None) or 32.0,
        beta_slow=r.read(float | None, "beta_slow", absent=None) or 1.0,
        truncate=r.read(bool, "truncate", absent=True),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def gqa(
    c: ConfigReader,
    *,
    num_kv_heads: int | None = None,
    theta: float = 10000.0,
    scale: float | None = None,
    bias: bool = False,
    qk_norm: str | None = None,
    clip_qkv: float | None = None,
    window: int | None = None,
) -> AttentionSpec:
    """Grouped-query attention from the usual keys.

    Args:
        num_kv_heads: when the config names none; None for as many as query heads.
        theta: of the rotary positions, likewise.
        scale: of the scores, when it is not 1 / sqrt(head_dim).
        bias: of all four projections.
    """
    heads = c.require(int, "num_attention_heads")
    kv_heads = c.read(int | None, "num_key_value_heads", absent=num_kv_heads)
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise c.error("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    hidden = c.require(int, "hidden_size")
    head_dim = c.read(int | None, "head_dim", absent=None)
    if head_dim is None:
        if hidden % heads:
            raise c.error("num_attention_heads", f"must divide hidden_size = {hidden} when head_dim is not given")
        head_dim = hidden // heads
    if window is not None and window < 1:
        raise c.error("sliding_window", "must be at least 1")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
        rope=rope(c, head_dim, theta),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=qk_norm,  # type: ignore[arg-type]
        clip_qkv=clip_qkv,
        window=window,
    )
