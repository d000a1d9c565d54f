"""Qwen2-MoE (and Qwen1.5-MoE): biased queries, keys and values; a shared expert behind a gate of its own."""

from dataclasses import replace

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    num_layers,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec, SharedSpec

ARCHITECTURE = "Qwen2MoeForCausalLM"
MODEL_TYPE = "qwen2_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    used = c.read(bool, "use_sliding_window", absent=False)
    window = c.read(int | None, "sliding_window", absent=4096)
    last = c.read(int, "max_window_layers", absent=28)
    attention = gqa(c, num_kv_heads=16, bias=c.read(bool, "qkv_bias", absent=True), output_bias=False)
    shared = DenseSpec(intermediate_size=c.require(int, "shared_expert_intermediate_size"), activation=act)
    moe = MoESpec(
        num_experts=c.require(int, "num_experts"),
        intermediate_size=c.require(int, "moe_intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
        activation=act,
        shared=SharedSpec(ffn=shared, gate=True),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    step = c.read(int, "decoder_sparse_step", absent=1)
    if step < 1:
        raise c.error("decoder_sparse_step", "must be at least 1")
    dense_layers = c.read(list | None, "mlp_only_layers", absent=None) or []
    kinds = windows(c, window if used else None, sliding=lambda layer: used and layer % 2 == 0 and layer < last)
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=kinds[layer]),
                ffn=dense if layer in dense_layers or (layer + 1) % step else moe,
            )
            for layer in range(num_layers(c))
        ],
    )


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, *SHARED_RULES]
