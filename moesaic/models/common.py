"""What architectures share: the pieces of a spec that most configs name alike, and rules for the usual tensor names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    Activation,
    AttentionSpec,
    DenseSpec,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    ModelSpec,
    MoESpec,
    Multipliers,
    NormSpec,
    RopeSpec,
    RouterSpec,
    SharedSpec,
    YarnScaling,
)
from moesaic.weights.rules import experts, fused_experts, ignore, rename, tied

BASE_RULES = [  # all but the layers' norms and their feed-forward
    rename("model.embed_tokens.weight", "embed.weight"),
    rename("model.norm.weight", "norm.weight"),
    rename("lm_head.{p}", "lm_head.{p}"),
    tied("lm_head.weight", "embed.weight"),
    *(
        rename(f"model.layers.{{l}}.self_attn.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}")
        for part in "qkvo"
    ),
    rename("model.layers.{l}.self_attn.{n}_norm.weight", "layers.{l}.attention.{n}_norm.weight"),
    rename("model.layers.{l}.self_attn.sinks", "layers.{l}.attention.sinks"),
    ignore("model.layers.{l}.self_attn.rotary_emb.inv_freq", "a buffer of old versions, computed here"),
]
DECODER_RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.ffn_norm.weight"),
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

CORRECTION_RULES = [  # it has been the router's, and the block's
    rename(f"{MLP}.gate.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
    rename(f"{MLP}.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
]
SHARED_RULES = [
    rename(f"{MLP}.{name}.{part}_proj.{{p}}", f"layers.{{l}}.mlp.shared.{part}.{{p}}")
    for name in ("shared_experts", "shared_expert", "shared_mlp")
    for part in ("gate", "up", "down")
] + [rename(f"{MLP}.shared_expert_gate.weight", "layers.{l}.mlp.shared_gate.weight")]
DEEPSEEK_RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, *CORRECTION_RULES, *SHARED_RULES]
SANDWICH_RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.attention_post_norm.weight"),
    rename("model.layers.{l}.pre_feedforward_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    rename("model.layers.{l}.post_feedforward_layernorm.weight", "layers.{l}.ffn_post_norm.weight"),
]

NEUTRAL = Multipliers()
ACTIVATIONS: dict[str, Activation] = {  # as transformers calls them
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def decoder(
    c: ConfigReader,
    layers: list[LayerSpec],
    multipliers: Multipliers = NEUTRAL,
    norm: NormSpec | None = None,
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    """The model around its layers.

    Args:
        norm: None for an RMS norm with the config's rms_norm_eps.
        tied: whether the output projection is the embedding table, for a config that says nothing.
        more: fields of ModelSpec.
    """
    c.refuse_unless("is_encoder_decoder", False)
    c.refuse_unless("add_cross_attention", False)
    c.ignore("cross_attention_hidden_size", "tie_encoder_decoder")
    return ModelSpec(
        vocab_size=c.require(int, "vocab_size"),
        hidden_size=c.require(int, "hidden_size"),
        max_position_embeddings=c.require(int, "max_position_embeddings"),
        norm=norm or NormSpec(eps=c.require(float, "rms_norm_eps")),
        tied_embeddings=c.read(bool, "tie_word_embeddings", absent=tied),
        layers=tuple(layers),
        multipliers=multipliers,
        **more,
    )


def activation(c: ConfigReader, key: str = "hidden_act", absent: str = "silu") -> Activation:
    """The activation of feed-forwards and experts. Raises UnsupportedError for one that there is not."""
    name = c.read(str, key, absent=absent)
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{c.path}: {unknown_name(key, name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def kinds_of_layers(c: ConfigReader, key: str, known: Sequence[str], absent: Callable[[int], str]) -> list[str]:
    """What each layer is, from a list in the config.

    Args:
        known: the values that are understood.
        absent: layer -> its kind, for a config without the list.
    """
    kinds: list[str] = c.read(list | None, key, absent=None) or [absent(layer) for layer in range(num_layers(c))]
    if len(kinds) != num_layers(c):
        raise c.error(key, f"has {len(kinds)} entries for {num_layers(c)} layers")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedError(f"{c.path}: {unknown_name(f'kind of layer in {key}', str(kind), known)}")
    return kinds


def windows(c: ConfigReader, window: int | None, sliding: Callable[[int], bool]) -> list[int | None]:
    """Each layer's window: `layer_types`, or, where the config has none, those that `sliding` names have one."""
    if window is not None and window < 1:
        raise c.error("sliding_window", "must be at least 1")
    kinds = kinds_of_layers(
        c,
        "layer_types",
        ("sliding_attention", "full_attention"),
        lambda layer: "sliding_attention" if sliding(layer) else "full_attention",
    )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def shared_experts(size: int, count: int, act: Activation = "silu", bias: bool = False) -> SharedSpec | None:
    """So many shared experts of a size, as one feed-forward; none where there is none."""
    return SharedSpec(ffn=DenseSpec(intermediate_size=size * count, activation=act, bias=bias)) if count else None


def deepseek_moe(
    c: ConfigReader, *, experts: str, shared: str, num_shared: int, scale: float = 1.0, renormalize: bool = True
) -> MoESpec:
    """DeepSeek-V3's experts (2024, section 2.1.2), which many have taken over: shared ones of the same size, and others
    chosen by sigmoids, with a correction for the choice alone, among the groups whose two best are best.

    Args:
        experts, shared: what the config calls their numbers.
        num_shared, scale, renormalize: for a config that says nothing.
    """
    size, act = c.require(int, "moe_intermediate_size"), activation(c)
    router = RouterSpec(
        top_k=c.require(int, "num_experts_per_tok"),
        scoring="sigmoid",
        correction=True,
        num_groups=c.read(int | None, "n_group", absent=1) or 1,
        top_groups=c.read(int | None, "topk_group", absent=1) or 1,
        renormalize=c.read(bool, "norm_topk_prob", absent=renormalize),
        epsilon=1e-20,
        scale=c.read(float, "routed_scaling_factor", absent=scale),
    )
    return MoESpec(
        num_experts=c.require(int, experts, "num_local_experts"),
        intermediate_size=size,
        router=router,
        activation=act,
        shared=shared_experts(size, c.read(int | None, shared, absent=num_shared) or 0, act),
    )


def num_layers(c: ConfigReader) -> int:
    """How many decoder layers."""
    return int(c.require(int, "num_hidden_layers"))


def rope(
    c: ConfigReader, head_dim: int, theta: float = 10000.0, partial: float | None = None, interleaved: bool = False
) -> RopeSpec:
    """Rotary positions, as transformers 5 spells them (rope_parameters) or 4 (rope_theta and rope_scaling).

    Args:
        theta: of the architecture's config class, for a config that names none.
        partial: likewise the share of a head's numbers that rotate; None where the architecture knows no such thing.
    """
    top_theta = c.read(float, "rope_theta", absent=theta)
    r = c.child("rope_parameters", "rope_scaling")
    dim = int(head_dim * _rotating(c, r, partial))
    if dim % 2 or not 0 < dim <= head_dim:
        raise UnsupportedError(f"{c.path}: rotary positions need an even head dimension, or part of it, got {dim}")
    name = r.read(str, "rope_type", "type", absent="default")
    plain = RopeSpec(
        theta=r.read(float, "rope_theta", absent=top_theta),
        dim=None if dim == head_dim else dim,
        interleaved=interleaved,
    )
    if name == "default":
        return plain
    if name not in _SCALINGS:
        known = ", ".join(["default", *_SCALINGS])
        raise UnsupportedError(f"{c.path}: rope type {name!r} is not supported; known are {known}")
    max_position = c.require(int, "max_position_embeddings")
    return replace(plain, scaling=_SCALINGS[name](r, max_position))


def _rotating(c: ConfigReader, r: ConfigReader, absent: float | None) -> float:
    """The share of a head's numbers that rotate."""
    key = "partial_rotary_factor"
    if absent is None:
        c.refuse_unless(key, 1, None)
        r.refuse_unless(key, 1, None)
        return 1.0
    given = r.read(float | None, key, absent=c.read(float | None, key, absent=None))
    return absent if given is None else float(given)


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
    head_dim: int | None = None,
    partial_rotary: float | None = None,
    interleaved: bool = False,
    rotary: bool = True,
    **more: Any,
) -> AttentionSpec:
    """Grouped-query attention from the usual keys.

    Args:
        num_kv_heads: when the config names none; None for as many as query heads.
        theta: of the rotary positions, likewise.
        scale: of the scores, when it is not 1 / sqrt(head_dim).
        bias: of all four projections; `output_bias` in `more` says otherwise of the last.
        head_dim: when the config names none; None for the hidden size over the number of heads.
        partial_rotary: share of a head's numbers that rotate, likewise.
        rotary: false where positions do not show.
        more: fields of AttentionSpec.
    """
    heads = c.require(int, "num_attention_heads")
    kv_heads = c.read(int | None, "num_key_value_heads", absent=num_kv_heads)
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise c.error("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    hidden = c.require(int, "hidden_size")
    head_dim = c.read(int | None, "head_dim", absent=head_dim)
    if head_dim is None:
        if hidden % heads:
            raise c.error("num_attention_heads", f"must divide hidden_size = {hidden} when head_dim is not given")
        head_dim = hidden // heads
    window = more.get("window")
    if window is not None and window < 1:
        raise c.error("sliding_window", "must be at least 1")
    positions = rope(c, head_dim, theta, partial_rotary, interleaved) if rotary else None
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
        rope=positions,
        qkv_bias=bias,
        output_bias=more.pop("output_bias", bias),
        **more,
    )
