"""Flint: only sliding layers rotate; sinks in all; sigmoids choose the experts, with one shared expert beside them."""

from dataclasses import replace

from moesaic.models.common import DEEPSEEK_RULES, activation, decoder, gqa, num_layers, shared_experts, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "FlintForCausalLM"
MODEL_TYPE = "flint"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act, last = activation(c), num_layers(c) - 1
    attention = gqa(
        c,
        num_kv_heads=4,
        head_dim=128,
        bias=c.read(bool, "attention_bias", absent=False),
        qk_norm="head",
        sinks=True,
    )
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", absent=256),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=512),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=6),
            scoring="sigmoid",
            renormalize=c.read(bool, "norm_topk_prob", absent=True),
        ),
        activation=act,
        shared=shared_experts(c.read(int, "shared_expert_intermediate_size", absent=1024), 1, act),
    )
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    step = c.read(int, "decoder_sparse_step", absent=1)
    if step < 1:
        raise c.error("decoder_sparse_step", "must be at least 1")
    given = c.read(list | None, "mlp_only_layers", absent=None)
    only = [0, 1] if given is None else given
    window = c.read(int, "sliding_window", absent=513)
    sizes = windows(c, window, sliding=lambda layer: layer > 1 and layer % 4 != 1 and layer != last)
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=size, rope=attention.rope if size else None),
                ffn=dense if layer in only or (layer + 1) % step else moe,
            )
            for layer, size in enumerate(sizes)
        ],
    )


RULES = [*DEEPSEEK_RULES, rename("model.layers.{l}.self_attn.softmax_offset", "layers.{l}.attention.sinks")]
