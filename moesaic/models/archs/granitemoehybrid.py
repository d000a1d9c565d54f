"""Granite 4 (hybrid): layers of Mamba 2 or attention, mostly without positions; experts beside a shared one, or that
one alone; four multipliers."""

from moesaic.models.common import (
    BLOCK_EXPERT_RULES,
    DECODER_RULES,
    decoder,
    gqa,
    kinds_of_layers,
    mamba2_rules,
    scaled,
    step_limits,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, Mamba2Spec, ModelSpec, MoESpec, RouterSpec, SharedSpec
from moesaic.weights.rules import Rule, rename

ARCHITECTURE = "GraniteMoeHybridForCausalLM"
MODEL_TYPE = "granitemoehybrid"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    c.refuse_unless("normalization_function", "rmsnorm")
    c.ignore("mamba_chunk_size", "init_method")  # how the reference computes, token by token here; how training began
    rotary = c.read(str | None, "position_embedding_type", absent=None)
    if rotary not in ("rope", "nope", None):
        raise c.error("position_embedding_type", 'must be "rope", "nope" or null')
    attention = gqa(
        c,
        bias=c.read(bool, "attention_bias", absent=False),
        scale=c.read(float | None, "attention_multiplier", absent=1.0),
        rotary=rotary == "rope",
    )
    if rotary != "rope":
        c.ignore("rope_parameters", "rope_theta", "rope_scaling")
    mamba = _mamba(c)
    mixers = {"linear_attention": mamba, "mamba": mamba, "full_attention": attention, "attention": attention}
    kinds = kinds_of_layers(c, "layer_types", tuple(mixers), lambda layer: "mamba")
    ffn = _feed_forward(c)
    return decoder(c, [LayerSpec(attention=mixers[kind], ffn=ffn) for kind in kinds], scaled(c))


def _mamba(c: ConfigReader) -> Mamba2Spec:
    inner = c.read(int, "mamba_expand", absent=2) * c.require(int, "hidden_size")
    heads = c.read(int, "mamba_n_heads", absent=128)
    head_dim = c.read(int | str | None, "mamba_d_head", absent="auto")
    head_dim = inner // heads if head_dim == "auto" else head_dim
    if heads * head_dim != inner:
        raise c.error("mamba_d_head", f"{heads} heads of {head_dim} do not make mamba_expand * hidden_size = {inner}")
    return Mamba2Spec(
        num_heads=heads,
        head_dim=head_dim,
        state_size=c.read(int, "mamba_d_state", absent=256),
        num_groups=c.read(int, "mamba_n_groups", absent=1),
        conv_width=c.read(int, "mamba_d_conv", absent=4),
        bias=c.read(bool, "mamba_proj_bias", absent=False),
        conv_bias=c.read(bool, "mamba_conv_bias", absent=True),
        step_limits=step_limits(c, "time_step_limit"),
    )


def _feed_forward(c: ConfigReader) -> DenseSpec | MoESpec:
    shared = DenseSpec(intermediate_size=c.read(int, "shared_intermediate_size", absent=1024))
    num_experts = c.read(int, "num_local_experts", absent=8)
    size, top_k = c.require(int, "intermediate_size"), c.read(int, "num_experts_per_tok", absent=2)
    if num_experts == 0:
        return shared
    router = RouterSpec(top_k=top_k, order="select_then_score")
    return MoESpec(num_experts=num_experts, intermediate_size=size, router=router, shared=SharedSpec(ffn=shared))


SHARED = "model.layers.{l}.shared_mlp"
RULES = [
    *DECODER_RULES,
    *BLOCK_EXPERT_RULES,
    *mamba2_rules("model.layers.{l}.mamba"),
    Rule(f"{SHARED}.input_linear.weight", "layers.{l}.mlp.gate.weight", part=0, parts=2),
    Rule(f"{SHARED}.input_linear.weight", "layers.{l}.mlp.up.weight", part=1, parts=2),
    rename(f"{SHARED}.output_linear.weight", "layers.{l}.mlp.down.weight"),
]
