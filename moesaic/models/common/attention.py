"""Attention from the usual keys."""

from typing import Any

from moesaic.models.common.positions import rope
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    AttentionSpec,
)


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
    if heads < 1:
        raise c.error("num_attention_heads", "must be at least 1")
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
