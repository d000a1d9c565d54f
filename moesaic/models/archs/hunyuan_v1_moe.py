"""Hunyuan v1 MoE: queries and keys normalised after their rotation; a softmax router, always renormalised; a shared
expert of the same size."""

from moesaic.models.common import (
    DECODER_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    activation,
    decoder,
    gqa,
    num_layers,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import rename

ARCHITECTURE = "HunYuanMoEV1ForCausalLM"
MODEL_TYPE = "hunyuan_v1_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    act = activation(c)
    c.refuse_unless("pretraining_tp", 1)
    c.ignore("eod_token_id")
    attention = gqa(c, bias=c.read(bool, "attention_bias", absent=False), qk_norm="head", qk_norm_last=True)
    size = c.require(int, "intermediate_size")
    top_k = _one(c, "moe_topk", "num_experts_per_tok")
    ffn = MoESpec(
        num_experts=_one(c, "num_experts", "num_local_experts"),
        intermediate_size=size,
        router=RouterSpec(top_k=top_k, renormalize=True),
        activation=act,
        shared=shared_experts(size, 1, act),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


def _one(c: ConfigReader, key: str, alias: str) -> int:
    """A number for all layers; the config may repeat it for each."""
    value = c.read(int | list, key, alias, absent=1)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise c.error(key, "must be the same in all layers")
        value = value[0]
    return int(value)


ATTENTION = "model.layers.{l}.self_attn"
RULES = [
    *DECODER_RULES,
    *MLP_EXPERT_RULES,
    *SHARED_RULES,
    rename("model.layers.{l}.mlp.gate.wg.weight", "layers.{l}.mlp.router.weight"),
    rename(f"{ATTENTION}.query_layernorm.weight", "layers.{l}.attention.q_norm.weight"),
    rename(f"{ATTENTION}.key_layernorm.weight", "layers.{l}.attention.k_norm.weight"),
]
