"""GraniteMoE with sinks and sliding windows: three layers of four slide; a layer may rotate with a base of its own, or
not at all."""

from dataclasses import replace

from moesaic.models.common import (
    BLOCK_EXPERT_RULES,
    DECODER_RULES,
    activation,
    decoder,
    gqa,
    num_layers,
    scaled,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec

ARCHITECTURE = "GraniteMoeSWAForCausalLM"
MODEL_TYPE = "granitemoe_swa"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    attention = gqa(
        c,
        bias=c.read(bool, "attention_bias", absent=False),
        scale=c.read(float, "attention_multiplier", absent=1.0),
        sinks=True,
    )
    shared = c.read(int, "shared_intermediate_size", absent=0)
    ffn = MoESpec(
        num_experts=c.read(int, "num_local_experts", absent=8),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=2), order="select_then_score"),
        activation=act,
        shared=shared_experts(shared, 1, act) if shared else None,
    )
    sizes = windows(c, c.read(int, "sliding_window", absent=128), sliding=lambda layer: bool(layer % 4))
    layers = [
        LayerSpec(attention=replace(_rotating(attention, theta), window=size), ffn=ffn)
        for theta, size in zip(_thetas(c), sizes, strict=True)
    ]
    return decoder(c, layers, scaled(c))


def _thetas(c: ConfigReader) -> list[float | None]:
    """The base of each layer's rotation, 0 where there is none; None for the model's."""
    thetas: list[float | None] = c.read(list | None, "layer_rope_theta", absent=None) or [None] * num_layers(c)
    if len(thetas) != num_layers(c):
        raise c.error("layer_rope_theta", f"has {len(thetas)} entries for {num_layers(c)} layers")
    return thetas


def _rotating(attention: AttentionSpec, theta: float | None) -> AttentionSpec:
    """The attention of a layer whose rotation has this base."""
    if theta is None or attention.rope is None:
        return attention
    return replace(attention, rope=replace(attention.rope, theta=float(theta)) if theta else None)


RULES = [*DECODER_RULES, *BLOCK_EXPERT_RULES]
