"""Jamba: seven layers of eight are Mamba, with norms of its steps, B and C; every other feed-forward has experts, whose
weights are not renormalised; positions do not show."""

import math

from moesaic.models.common import BASE_RULES, activation, decoder, feed_forward, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, MambaSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import experts, fused_experts, packed, rename

ARCHITECTURE = "JambaForCausalLM"
MODEL_TYPE = "jamba"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan")  # ways to compute the same
    c.ignore("num_logits_to_keep", "calc_logits_for_entire_prompt", "n_ctx")
    c.refuse_unless("mamba_inner_layernorms", True)
    c.refuse_unless("sliding_window", None)
    act = activation(c)
    if act != "silu":
        raise c.error("hidden_act", "must be silu: the convolution's is that, too")
    size = c.require(int, "intermediate_size")
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=16),
        intermediate_size=size,
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=2)),
    )
    mamba, attention = _mamba(c), gqa(c, num_kv_heads=8, rotary=False)
    attends = _every(c, "attn_layer", period=8, offset=4)
    sparse = _every(c, "expert_layer", period=2, offset=1)
    dense = DenseSpec(intermediate_size=size)
    layers = [
        LayerSpec(
            attention=attention if la in attends else mamba, ffn=moe if la in sparse and moe.num_experts > 1 else dense
        )
        for la in range(num_layers(c))
    ]
    return decoder(c, layers)


def _every(c: ConfigReader, name: str, period: int, offset: int) -> range:
    """Layers that come after each period, from an offset on."""
    period, offset = c.positive(f"{name}_period", absent=period), c.read(int, f"{name}_offset", absent=offset)
    if not 0 <= offset < period:
        raise c.error(f"{name}_offset", f"must be less than {name}_period = {period}")
    return range(offset, num_layers(c), period)


def _mamba(c: ConfigReader) -> MambaSpec:
    hidden = c.require(int, "hidden_size")
    rank = c.read(int | str, "mamba_dt_rank", absent="auto")
    return MambaSpec(
        inner_size=c.read(int, "mamba_expand", absent=2) * hidden,
        state_size=c.read(int, "mamba_d_state", absent=16),
        step_rank=math.ceil(hidden / 16) if rank == "auto" else rank,
        conv_width=c.read(int, "mamba_d_conv", absent=4),
        bias=c.read(bool, "mamba_proj_bias", absent=False),
        conv_bias=c.read(bool, "mamba_conv_bias", absent=True),
    )


LAYER, OURS = "model.layers.{l}", "layers.{l}"
MAMBA, ATTENTION, FFN = f"{LAYER}.mamba", f"{OURS}.attention", f"{LAYER}.feed_forward"
RULES = [
    *BASE_RULES,
    rename("model.final_layernorm.weight", "norm.weight"),
    rename(f"{LAYER}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
    rename(f"{LAYER}.pre_ff_layernorm.weight", f"{OURS}.ffn_norm.weight"),
    *packed(f"{MAMBA}.in_proj.{{p}}", *(f"{ATTENTION}.{part}.{{p}}" for part in ("x", "gate"))),
    rename(f"{MAMBA}.conv1d.{{p}}", f"{ATTENTION}.conv.{{p}}"),
    *packed(f"{MAMBA}.x_proj.weight", *(f"{ATTENTION}.step_{part}.weight" for part in ("down", "b", "c"))),
    rename(f"{MAMBA}.dt_layernorm.weight", f"{ATTENTION}.step_norm.weight"),
    rename(f"{MAMBA}.{{n}}_layernorm.weight", f"{ATTENTION}.{{n}}_norm.weight"),
    rename(f"{MAMBA}.dt_proj.weight", f"{ATTENTION}.step_up.weight"),
    rename(f"{MAMBA}.dt_proj.bias", f"{ATTENTION}.step_bias"),
    rename(f"{MAMBA}.A_log", f"{ATTENTION}.rate"),
    rename(f"{MAMBA}.D", f"{ATTENTION}.skip"),
    rename(f"{MAMBA}.out_proj.{{p}}", f"{ATTENTION}.o.{{p}}"),
    *feed_forward(FFN, f"{OURS}.mlp"),
    rename(f"{FFN}.router.weight", f"{OURS}.mlp.router.weight"),
    *experts(f"{FFN}.experts.{{e}}", gate="gate_proj", up="up_proj", down="down_proj"),
    *fused_experts(f"{FFN}.experts.gate_up_proj", f"{FFN}.experts.down_proj"),
]
