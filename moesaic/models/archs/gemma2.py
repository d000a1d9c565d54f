"""Gemma 2, dense: norms before and after each part, their weights stored less 1; soft caps on scores and logits; every
other layer slides."""

from dataclasses import replace

from moesaic.models.common import (
    DENSE_RULES,
    SANDWICH_RULES,
    activation,
    decoder,
    gqa,
    windows,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, Multipliers, NormSpec

ARCHITECTURE = "Gemma2ForCausalLM"
MODEL_TYPE = "gemma2"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("use_bidirectional_attention", None, False)
    c.ignore("hidden_act")  # of old configs, which the reference does not read
    c.ignore("cache_implementation")
    attention = gqa(
        c,
        num_kv_heads=4,
        head_dim=256,
        bias=c.read(bool, "attention_bias", absent=False),
        scale=c.read(float, "query_pre_attn_scalar", absent=256.0) ** -0.5,
        softcap=c.read(float | None, "attn_logit_softcapping", absent=50.0),
    )
    act = activation(c, "hidden_activation", absent="gelu_pytorch_tanh")
    ffn = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act)
    sizes = windows(
        c,
        c.read(int | None, "sliding_window", "sliding_window_size", absent=4096),
        sliding=lambda layer: layer % 2 == 0,
    )
    return decoder(
        c,
        [LayerSpec(attention=replace(attention, window=w), ffn=ffn, norms="sandwich") for w in sizes],
        Multipliers(embedding=c.require(int, "hidden_size") ** 0.5),
        norm=NormSpec(eps=c.require(float, "rms_norm_eps"), offset=1.0),
        logits_softcap=c.read(float | None, "final_logit_softcapping", absent=30.0),
        tied=True,
    )


RULES = [*SANDWICH_RULES, *DENSE_RULES]
