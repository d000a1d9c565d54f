"""gpt-oss: every other layer slides; heads have sinks; experts are biased, clamped and stored transposed."""

from dataclasses import replace

from moesaic.models.common import DECODER_RULES, decoder, gqa, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import fused_experts, rename

ARCHITECTURE = "GptOssForCausalLM"
MODEL_TYPE = "gpt_oss"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")  # the gate has a formula of its own, whatever this says
    c.ignore("initial_context_length")  # of original checkpoints; rope_scaling says it
    if "rope_parameters" not in c and "rope_scaling" not in c:
        raise c.error("rope_scaling", "must say how positions are scaled (the released models use yarn)")
    attention = gqa(
        c,
        num_kv_heads=8,
        head_dim=64,
        theta=150000.0,
        bias=c.read(bool, "attention_bias", absent=True),
        sinks=True,
    )
    ffn = MoESpec(
        num_experts=c.require(int, "num_local_experts", "num_experts"),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", "experts_per_token", absent=4),
            order="select_then_score",
            bias=True,
        ),
        activation="swigluoai",
        bias=True,
        alpha=c.read(float, "swiglu_alpha", absent=1.702),
        limit=c.read(float, "swiglu_limit", absent=7.0),
    )
    sizes = windows(c, c.read(int | None, "sliding_window", absent=128), sliding=lambda layer: layer % 2 == 0)
    return decoder(c, [LayerSpec(attention=replace(attention, window=w), ffn=ffn) for w in sizes])


MLP = "model.layers.{l}.mlp"
RULES = [
    *DECODER_RULES,
    rename(f"{MLP}.router.{{p}}", "layers.{l}.mlp.router.{p}"),
    *fused_experts(f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj", interleaved=True, transposed=True),
    *fused_experts(f"{MLP}.experts.gate_up_proj_bias", f"{MLP}.experts.down_proj_bias", interleaved=True, kind="bias"),
    *fused_experts(f"{MLP}.experts.gate_up_proj_blocks", f"{MLP}.experts.down_proj_blocks", interleaved=True),  # MXFP4
]
