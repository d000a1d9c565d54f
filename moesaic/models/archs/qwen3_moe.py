"""Qwen3-MoE: queries and keys normalised per head; some layers may be dense."""

from moesaic.models.common import DECODER_RULES, DENSE_RULES, MLP_EXPERT_RULES, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec

ARCHITECTURE = "Qwen3MoeForCausalLM"
MODEL_TYPE = "qwen3_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    window = c.read(int | None, "sliding_window", absent=4096)
    # The reference gives the window to every layer when it is used at all, whatever max_window_layers says.
    c.ignore("max_window_layers")
    attention = gqa(
        c,
        num_kv_heads=4,
        bias=c.read(bool, "attention_bias", absent=False),
        qk_norm="head",
        window=window if c.read(bool, "use_sliding_window", absent=False) else None,
    )
    moe = MoESpec(
        num_experts=c.require(int, "num_experts", "num_local_experts"),
        intermediate_size=c.require(int, "moe_intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
    )
    c.ignore("intermediate_size")  # read where a layer is dense
    step = c.positive("decoder_sparse_step", absent=1)
    dense_layers = c.read(list | None, "mlp_only_layers", absent=None) or []

    def ffn(layer: int) -> DenseSpec | MoESpec:
        sparse = layer not in dense_layers and moe.num_experts > 0 and (layer + 1) % step == 0
        return moe if sparse else DenseSpec(intermediate_size=c.require(int, "intermediate_size"))

    return decoder(c, [LayerSpec(attention=attention, ffn=ffn(layer)) for layer in range(num_layers(c))])


RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES]
