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
    c.ignore("eod_token_id", "moe_drop_tokens", "moe_random_routing_dropped_token")  # dropping is for training
    c.refuse_unless("use_mixed_mlp_moe", True)
    c.refuse_unless("use_qk_norm", True)
    c.refuse_unless("use_cla", False)
    c.refuse_unless("mlp_bias", False)
    c.refuse_unless("norm_type", "rms")
    c.refuse_unless("moe_layer_num_skipped", 0)
    c.refuse_unless("attention_head_dim", c.read(int | None, "head_dim", absent=None))
    attention = gqa(c, bias=c.read(bool, "attention_bias", absent=False), qk_norm="head", qk_norm_last=True)
    size = c.require(int, "intermediate_size")
    if _one(c, "moe_intermediate_size", absent=size) != size:
        raise c.error("moe_intermediate_size", f"must be intermediate_size, which is {size}")
    if _one(c, "num_shared_expert", absent=1) != 1:
        raise c.error("num_shared_expert", "must be 1")
    top_k = _one(c, "moe_topk", "num_experts_per_tok")
    ffn = MoESpec(
        num_experts=_one(c, "num_experts", "num_local_experts"),
        intermediate_size=size,
        router=RouterSpec(top_k=top_k, renormalize=True),
        activation=act,
        shared=shared_experts(size, 1, act),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


def _one(c: ConfigReader, *keys: str, absent: int = 1) -> int:
    """A number for all layers; the config may repeat it for each."""
    value = c.read(int | list, *keys, absent=absent)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise c.error(keys[0], "must be the same in all layers")
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
