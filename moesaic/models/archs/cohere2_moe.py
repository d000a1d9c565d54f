"""Cohere2 MoE: attention and experts stand side by side behind one layer norm; neighbours rotate, in sliding layers."""

from dataclasses import replace

from moesaic.models.common import (
    BASE_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    kinds_of_layers,
    num_layers,
    shared_experts,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, Multipliers, NormSpec, RouterSpec, SharedSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "Cohere2MoeForCausalLM"
MODEL_TYPE = "cohere2_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    size = c.require(int, "intermediate_size")
    window = c.read(int | None, "sliding_window", absent=4096)
    attention = gqa(c, head_dim=128, bias=c.read(bool, "attention_bias", absent=False), interleaved=True)
    moe = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=size,
        router=_router(c),
        activation=act,
        shared=_shared(c, size),
    )
    first = c.read(int, "first_k_dense_replace", absent=0)
    ffns = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < first else "sparse")
    prefix = c.read(int, "prefix_dense_sliding_window_pattern", absent=1)
    pattern = c.read(int, "sliding_window_pattern", absent=4)
    sizes = windows(c, window, lambda i: bool((i + 1) % prefix if i < first else (i - first + 1) % pattern))
    dense_size = c.read(int | None, "prefix_dense_intermediate_size", absent=None)
    rms_eps, layer_eps = c.read(float | None, "rms_norm_eps", absent=None), c.read(float, "layer_norm_eps", absent=1e-5)

    def layer(i: int) -> LayerSpec:
        dense = ffns[i] == "dense"
        rotates = sizes[i] is not None or (dense and prefix == 1)
        return LayerSpec(
            attention=replace(attention, window=sizes[i], rope=attention.rope if rotates else None),
            ffn=DenseSpec(intermediate_size=dense_size or size, activation=act) if dense else moe,
            norms="parallel",
        )

    return decoder(
        c,
        [layer(i) for i in range(num_layers(c))],
        Multipliers(logits=c.read(float, "logit_scale", absent=0.0625)),
        norm=NormSpec(eps=layer_eps, kind="layer") if rms_eps is None else NormSpec(eps=rms_eps),
        tied=True,
    )


def _router(c: ConfigReader) -> RouterSpec:
    scoring = c.read(str, "expert_selection_fn", absent="softmax")
    if scoring not in ("softmax", "sigmoid"):
        raise c.error("expert_selection_fn", "must be softmax or sigmoid")
    normalise = c.read(bool, "norm_topk_prob", absent=True)
    return RouterSpec(
        top_k=c.require(int, "num_experts_per_tok"),
        scoring="softmax" if scoring == "softmax" else "sigmoid",
        order="select_then_score",
        renormalize=normalise and scoring == "sigmoid",
    )


def _shared(c: ConfigReader, size: int) -> SharedSpec | None:
    how = c.read(str, "shared_expert_combination_strategy", absent="average")
    if how not in ("average", "sum"):
        raise c.error("shared_expert_combination_strategy", "must be average or sum")
    shared = shared_experts(size, c.read(int, "num_shared_experts", absent=0), activation(c))
    return shared and replace(shared, average=how == "average")


RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    *DENSE_RULES,
    *MLP_EXPERT_RULES,
    *SHARED_RULES,
]
