"""DeepSeek-V2: latent attention; experts chosen by a softmax, among the best groups perhaps, beside shared ones."""

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.models.common import (
    LATENT_DEEPSEEK_RULES,
    activation,
    decoder,
    mla,
    num_layers,
    shared_experts,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec

ARCHITECTURE = "DeepseekV2ForCausalLM"
MODEL_TYPE = "deepseek_v2"

METHODS = ("greedy", "group_limited_greedy")


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp")  # of training, and of parallel ranks
    c.refuse_unless("moe_layer_freq", 1)
    attention = mla(c, interleaved=True)
    bias, act = c.read(bool, "mlp_bias", absent=False), activation(c)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=act, bias=bias)
    size = c.require(int, "moe_intermediate_size")
    moe = MoESpec(
        num_experts=c.require(int, "n_routed_experts", "num_experts"),
        intermediate_size=size,
        router=_router(c),
        activation=act,
        shared=shared_experts(size, c.read(int | None, "n_shared_experts", absent=2) or 0, act, bias),
    )
    first = c.read(int, "first_k_dense_replace", absent=0)
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


def _router(c: ConfigReader) -> RouterSpec:
    """Groups, where there are any, are as good as their best expert; experts outside of the best ones count as 0."""
    c.refuse_unless("scoring_func", "softmax")
    c.refuse_unless("norm_topk_prob", False, None)
    method = c.read(str, "topk_method", absent="greedy")
    if method not in METHODS:
        raise UnsupportedError(f"{c.path}: {unknown_name('topk_method', method, METHODS)}")
    groups = c.read(int | None, "n_group", absent=None), c.read(int | None, "topk_group", absent=None)
    grouped = method == METHODS[1]
    return RouterSpec(
        top_k=c.require(int, "num_experts_per_tok"),
        num_groups=groups[0] or 1 if grouped else 1,
        top_groups=groups[1] or 1 if grouped else 1,
        group_score="max",
        masked_score=0.0,
        scale=c.read(float, "routed_scaling_factor", absent=1.0),
    )


RULES = LATENT_DEEPSEEK_RULES
