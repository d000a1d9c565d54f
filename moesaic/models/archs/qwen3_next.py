"""Qwen3-Next: three layers of four keep a state by the gated delta rule, the others attend and gate what heads give;
norms are stored as their difference from 1."""

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    GATED_DELTA_RULES,
    MLP_EXPERT_RULES,
    SHARED_RULES,
    decoder,
    delta_or_attention,
    experts_and_gated_one,
    gated_query_rules,
    num_layers,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, GatedDeltaSpec, LayerSpec, ModelSpec, NormSpec
from moesaic.weights.rules import AnyRule, Rule, ignore

ARCHITECTURE = "Qwen3NextForCausalLM"
MODEL_TYPE = "qwen3_next"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    renormalize = c.read(bool, "norm_topk_prob", absent=True)
    moe = experts_and_gated_one(c, num_experts=512, top_k=10, renormalize=renormalize)
    dense = DenseSpec(intermediate_size=c.read(int, "intermediate_size", absent=5632))
    step = c.positive("decoder_sparse_step", absent=1)
    dense_layers = c.read(list | None, "mlp_only_layers", absent=None) or []
    ffns = [dense if la in dense_layers or (la + 1) % step else moe for la in range(num_layers(c))]
    layers = [LayerSpec(attention=mixer, ffn=ffn) for mixer, ffn in zip(delta_or_attention(c), ffns, strict=True)]
    return decoder(c, layers, norm=NormSpec(eps=c.read(float, "rms_norm_eps", absent=1e-6), offset=1.0))


def RULES(model: ModelSpec) -> list[AnyRule]:
    """Where the parameters lie."""
    rules = [rule for rule in DECODER_RULES if rule.source != "model.layers.{l}.self_attn.q_proj.{p}"]
    rules += [
        *DENSE_RULES,
        *MLP_EXPERT_RULES,
        *SHARED_RULES,
        *GATED_DELTA_RULES,
        ignore("mtp.{any}", "for speculation"),
    ]
    for mixer in {layer.attention for layer in model.layers}:
        if isinstance(mixer, AttentionSpec):
            rules += gated_query_rules(mixer)
        elif isinstance(mixer, GatedDeltaSpec):
            rules += _projections(mixer)
    return rules


def _projections(s: GatedDeltaSpec) -> list[Rule]:
    """Head of keys after head of keys: its query, key, values and gates; and the betas and decays of its values."""
    share = s.num_heads // s.num_key_heads
    values = share * s.value_dim
    in_proj = "model.layers.{l}.linear_attn.in_proj"
    rules = _turns(f"{in_proj}_qkvz.weight", {"q": s.key_dim, "k": s.key_dim, "v": values, "gate": values})
    return rules + _turns(f"{in_proj}_ba.weight", {"beta": share, "decay": share})


def _turns(source: str, sizes: dict[str, int]) -> list[Rule]:
    rules, first = [], 0
    for part, size in sizes.items():
        target = f"layers.{{l}}.attention.{part}.weight"
        rules.append(Rule(source, target, turns=(first, size, sum(sizes.values()))))
        first += size
    return rules
