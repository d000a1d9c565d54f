"""MiniMax-M2: queries and keys normalised over all heads together, part of a head rotates; sigmoid scores with a
correction for the choice, always renormalised."""

from moesaic.models.common import DECODER_RULES, MLP_EXPERT_RULES, activation, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import experts, rename

ARCHITECTURE = "MiniMaxM2ForCausalLM"
MODEL_TYPE = "minimax_m2"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("router_jitter_noise")  # added in training only
    c.ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers")  # for speculation
    c.refuse_unless("use_qk_norm", True)
    c.refuse_unless("qk_norm_type", "per_layer")
    c.refuse_unless("scoring_func", "sigmoid")
    c.refuse_unless("use_routing_bias", True)
    c.refuse_unless("shared_intermediate_size", 0)
    c.ignore("shared_moe_mode", "mlp_intermediate_size")  # of shared experts and dense layers, of which it has none
    c.refuse_unless("sliding_window", None)
    c.refuse_unless("attn_type_list", [1] * num_layers(c))  # 0 would be linear attention
    for block in ("full_attention", "linear_attention", "mlp"):  # factors on residuals
        c.refuse_unless(f"layernorm_{block}_beta", 1)
    head_dim = c.read(int, "head_dim", absent=128)
    rotary = c.read(int | None, "rotary_dim", absent=None)
    attention = gqa(
        c,
        num_kv_heads=8,
        head_dim=128,
        theta=5000000.0,
        qk_norm="full",
        partial_rotary=1.0 if rotary is None else rotary / head_dim,
    )
    ffn = MoESpec(
        num_experts=c.require(int, "num_local_experts", "num_experts"),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"), scoring="sigmoid", correction=True, renormalize=True
        ),
        activation=activation(c),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


MOE = "model.layers.{l}.block_sparse_moe"
RULES = [
    *DECODER_RULES,
    *MLP_EXPERT_RULES,
    rename("model.layers.{l}.mlp.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
    rename(f"{MOE}.gate.weight", "layers.{l}.mlp.router.weight"),
    rename(f"{MOE}.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
    *experts(f"{MOE}.experts.{{e}}", gate="w1", up="w3", down="w2"),
]
