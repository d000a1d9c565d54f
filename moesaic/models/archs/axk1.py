"""A.X K1: DeepSeek-V3's layers, with a norm of what experts give."""

from dataclasses import replace

from moesaic.models.common import (
    CORRECTION_RULES,
    LATENT_DEEPSEEK_RULES,
    MLP,
    activation,
    decoder,
    deepseek_moe,
    kinds_of_layers,
    mla,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore, rename

ARCHITECTURE = "AXK1ForCausalLM"
MODEL_TYPE = "axk1"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    attention = mla(c)
    moe = deepseek_moe(c, scale=2.5)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first, every = c.read(int, "first_k_dense_replace", absent=1), c.positive("moe_layer_freq", absent=1)
    kinds = kinds_of_layers(
        c, "mlp_layer_types", ("dense", "sparse"), lambda i: "sparse" if i >= first and i % every == 0 else "dense"
    )
    layers = {
        "dense": LayerSpec(attention=attention, ffn=dense),
        "sparse": LayerSpec(attention=attention, ffn=moe, norms="ffn_sandwich"),
    }
    return decoder(c, [layers[kind] for kind in kinds])


POST = "post_mlp_layernorm.weight"
RULES = [
    *(rule for rule in LATENT_DEEPSEEK_RULES if rule not in CORRECTION_RULES),
    # The released model has no corrections, and this norm for dense layers too, which do not use it.
    replace(CORRECTION_RULES[0], optional=True),
    rename(f"model.layers.{{l}}.{POST}", "layers.{l}.ffn_post_norm.weight"),
    rename(f"{MLP}.{POST}", "layers.{l}.ffn_post_norm.weight"),
    ignore(f"model.layers.{{l}}.{POST}", "a norm of dense layers, which do not use it"),
]
