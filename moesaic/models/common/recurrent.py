"""The gated delta rule beside gated attention, from the keys and under the names that several models share."""

import math

from moesaic.models.common.attention import gqa
from moesaic.models.common.layers import kinds_of_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, GatedDeltaSpec, GateSpec, MoESpec, RouterSpec, SharedSpec
from moesaic.weights.rules import Rule, packed, rename

LINEAR, OURS = "model.layers.{l}.linear_attn", "layers.{l}.attention"


def delta_or_attention(c: ConfigReader) -> list[AttentionSpec | GatedDeltaSpec]:
    """What mixes tokens in each layer: the gated delta rule, or, by default in every fourth, attention with a gate."""
    c.refuse_unless("attn_output_gate", True)
    c.refuse_unless("use_sliding_window", False)
    bias = c.read(bool, "attention_bias", absent=False)
    mixers = {
        "linear_attention": _gated_delta(c),
        "full_attention": gqa(
            c,
            num_kv_heads=2,
            head_dim=256,
            partial_rotary=0.25,
            bias=bias,
            qk_norm="head",
            output_gate=GateSpec(bias=bias),
        ),
    }
    every = c.positive("full_attention_interval", absent=4)
    kinds = kinds_of_layers(
        c, "layer_types", tuple(mixers), lambda la: "linear_attention" if (la + 1) % every else "full_attention"
    )
    return [mixers[kind] for kind in kinds]


def experts_and_gated_one(c: ConfigReader, *, num_experts: int, top_k: int, renormalize: bool = True) -> MoESpec:
    """Experts of 512 by default, and a shared one behind a gate of its own.

    Args:
        num_experts, top_k: for a config that says nothing.
    """
    shared = DenseSpec(intermediate_size=c.read(int, "shared_expert_intermediate_size", absent=512))
    return MoESpec(
        num_experts=c.read(int, "num_experts", absent=num_experts),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=512),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=top_k), renormalize=renormalize),
        shared=SharedSpec(ffn=shared, gate=True),
    )


def _gated_delta(c: ConfigReader) -> GatedDeltaSpec:
    return GatedDeltaSpec(
        num_key_heads=c.read(int, "linear_num_key_heads", absent=16),
        num_heads=c.read(int, "linear_num_value_heads", absent=32),
        key_dim=c.read(int, "linear_key_head_dim", absent=128),
        value_dim=c.read(int, "linear_value_head_dim", absent=128),
        conv_width=c.read(int, "linear_conv_kernel_dim", absent=4),
    )


def gated_query_rules(spec: AttentionSpec) -> list[Rule]:
    """Queries and the gates of what heads give, in one projection: head after head, first its query, then its gate."""
    size, source = spec.head_dim, "model.layers.{l}.self_attn.q_proj.{p}"
    return [
        Rule(source, f"{OURS}.{part}.{{p}}", turns=(first, size, 2 * size))
        for part, first in (("q", 0), ("gate", size))
    ]


GATED_DELTA_RULES = [  # but projections
    *packed(f"{LINEAR}.conv1d.weight", *(f"{OURS}.conv.{part}.weight" for part in "qkv")),
    rename(f"{LINEAR}.A_log", f"{OURS}.rate"),
    rename(f"{LINEAR}.dt_bias", f"{OURS}.decay_bias"),
    rename(f"{LINEAR}.norm.weight", f"{OURS}.norm.weight"),
    rename(f"{LINEAR}.out_proj.weight", f"{OURS}.o.weight"),
]


def mamba2_rules(source: str) -> list[Rule]:
    """The parameters of Mamba 2 by their usual names."""
    return [
        *packed(f"{source}.in_proj.{{p}}", *(f"{OURS}.{part}.{{p}}" for part in ("gate", "x", "b", "c", "step"))),
        rename(f"{source}.conv1d.{{p}}", f"{OURS}.conv.{{p}}"),
        rename(f"{source}.A_log", f"{OURS}.rate"),
        rename(f"{source}.dt_bias", f"{OURS}.step_bias"),
        rename(f"{source}.D", f"{OURS}.skip"),
        rename(f"{source}.norm.weight", f"{OURS}.norm.weight"),
        rename(f"{source}.out_proj.{{p}}", f"{OURS}.o.{{p}}"),
    ]


def step_limits(c: ConfigReader, key: str) -> tuple[float, float]:
    """Bounds of a step: two numbers, of which transformers writes an infinite one as {"__float__": "Infinity"}."""
    given = c.read(list | None, key, absent=None) or (0.0, math.inf)
    try:
        least, most = (float(v["__float__"] if isinstance(v, dict) else v) for v in given)
    except (KeyError, TypeError, ValueError):
        raise c.error(key, "must be two numbers") from None
    return least, most
