"""LFM2 with experts, and without: most layers convolve a few tokens instead of attending; sigmoid scores with a
correction for the choice."""

from moesaic.models.common import BASE_RULES, decoder, gqa, kinds_of_layers, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, NormSpec, RouterSpec, ShortConvSpec
from moesaic.weights.rules import Rule, experts, fused_experts, rename

ARCHITECTURE = "Lfm2MoeForCausalLM"
ALSO = {"Lfm2ForCausalLM": "lfm2"}
MODEL_TYPE = "lfm2_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    mixers = {
        "full_attention": gqa(c, num_kv_heads=8, theta=1000000.0, qk_norm="head"),
        "conv": ShortConvSpec(
            width=c.read(int, "conv_L_cache", absent=3), bias=c.read(bool, "conv_bias", absent=False)
        ),
    }
    size = c.require(int, "intermediate_size", "block_ff_dim")
    if "num_experts" in c:
        dense, num_dense = DenseSpec(intermediate_size=size), c.read(int, "num_dense_layers", absent=2)
        ffns = [dense if layer < num_dense else _experts(c) for layer in range(num_layers(c))]
        c.require(list, "layer_types")
    else:
        ffns = [DenseSpec(intermediate_size=_adjusted(c, size))] * num_layers(c)
    attending = c.read(list | None, "full_attn_idxs", absent=None)
    kinds = kinds_of_layers(
        c, "layer_types", tuple(mixers), lambda la: "full_attention" if attending is None or la in attending else "conv"
    )
    c.refuse_unless("block_use_swiglu", True)
    c.refuse_unless("use_pos_enc", True)
    c.ignore("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init")
    c.ignore("block_dim", "block_norm_eps", "conv_dim", "conv_dim_out", "num_heads")  # said twice; not read
    return decoder(
        c,
        [LayerSpec(attention=mixers[kind], ffn=ffn) for kind, ffn in zip(kinds, ffns, strict=True)],
        norm=NormSpec(eps=c.read(float, "norm_eps", absent=1e-5)),
        tied=c.read(bool, "tie_word_embeddings", "tie_embedding", absent=True),
    )


def _experts(c: ConfigReader) -> MoESpec:
    return MoESpec(
        num_experts=c.require(int, "num_experts"),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=1792),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=4),
            scoring="sigmoid",
            correction=c.read(bool, "use_expert_bias", absent=True),
            renormalize=c.read(bool, "norm_topk_prob", absent=True),
            epsilon=1e-6,
            scale=c.read(float, "routed_scaling_factor", absent=1.0),
        ),
    )


def _adjusted(c: ConfigReader, size: int) -> int:
    """The dense feed-forward's size: two thirds of the config's, times a factor, in whole multiples."""
    factor = c.read(float | None, "block_ffn_dim_multiplier", absent=1.0)
    multiple = c.positive("block_multiple_of", absent=256)
    if not c.read(bool, "block_auto_adjust_ff_dim", absent=True):
        return size
    size = int(2 * size / 3)
    return size if factor is None else -(-int(factor * size) // multiple) * multiple


LAYER, OURS = "model.layers.{l}", "layers.{l}"
FFN = f"{LAYER}.feed_forward"
RULES = [
    *BASE_RULES,
    rename("model.embedding_norm.weight", "norm.weight"),
    rename(f"{LAYER}.operator_norm.weight", f"{OURS}.attention_norm.weight"),
    rename(f"{LAYER}.ffn_norm.weight", f"{OURS}.ffn_norm.weight"),
    rename(f"{LAYER}.self_attn.out_proj.weight", f"{OURS}.attention.o.weight"),
    rename(f"{LAYER}.self_attn.{{n}}_layernorm.weight", f"{OURS}.attention.{{n}}_norm.weight"),
    *(
        Rule(f"{LAYER}.conv.in_proj.{{p}}", f"{OURS}.attention.{part}.{{p}}", part=i, parts=3)
        for i, part in enumerate("bcx")
    ),
    rename(f"{LAYER}.conv.conv.{{p}}", f"{OURS}.attention.conv.{{p}}"),
    rename(f"{LAYER}.conv.out_proj.{{p}}", f"{OURS}.attention.o.{{p}}"),
    *(rename(f"{FFN}.w{i}.weight", f"{OURS}.mlp.{part}.weight") for i, part in ((1, "gate"), (3, "up"), (2, "down"))),
    rename(f"{FFN}.gate.weight", f"{OURS}.mlp.router.weight"),
    rename(f"{FFN}.expert_bias", f"{OURS}.mlp.router.correction"),
    *experts(f"{FFN}.experts.{{e}}", gate="w1", up="w3", down="w2"),
    *fused_experts(f"{FFN}.experts.gate_up_proj", f"{FFN}.experts.down_proj"),
]
