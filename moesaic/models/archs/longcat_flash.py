"""LongCat-Flash: what a checkpoint calls a layer is two, each with latent attention and a dense feed-forward. Experts
on a shortcut lead from the first to the end of the second; some of them give what they are given."""

from dataclasses import replace

from moesaic.models.common import BASE_RULES, LATENT_RULES, activation, decoder, feed_forward, mla
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LatentAttentionSpec, LayerSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import AnyRule, Rule, experts, ignore, rename

ARCHITECTURE = "LongcatFlashForCausalLM"
MODEL_TYPE = "longcat_flash"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("num_hidden_layers")  # has been once and twice the number of layers
    c.refuse_unless("attention_method", "MLA")
    c.refuse_unless("zero_expert_type", "identity")
    attention, act = _attention(c), activation(c)
    dense = DenseSpec(intermediate_size=c.require(int, "ffn_hidden_size", "intermediate_size"), activation=act)
    c.refuse_unless("router_bias", False)
    c.refuse_unless("norm_topk_prob", False)
    c.ignore("router_dtype")  # float32 always
    router = RouterSpec(
        top_k=c.require(int, "moe_topk", "num_experts_per_tok"),
        correction=True,
        scale=c.read(float, "routed_scaling_factor", absent=6.0),
    )
    moe = MoESpec(
        num_experts=c.require(int, "n_routed_experts", "num_local_experts"),
        identity_experts=c.read(int | None, "zero_expert_num", absent=256) or 0,
        intermediate_size=c.require(int, "expert_ffn_hidden_size", "moe_intermediate_size"),
        router=router,
        activation=act,
    )
    pair = [LayerSpec(attention=attention, ffn=dense, shortcut=moe), LayerSpec(attention=attention, ffn=dense)]
    return decoder(c, pair * c.positive("num_layers", absent=28))


def _attention(c: ConfigReader) -> LatentAttentionSpec:
    """Queries and latents are scaled as if they had the size of hidden states."""
    c.refuse_unless("mla_scale_q_lora", True)
    c.refuse_unless("mla_scale_kv_lora", True)
    plain = mla(c, theta=1e7, interleaved=True)
    c.refuse_unless("head_dim", plain.rope_dim)
    hidden, rank = c.require(int, "hidden_size"), c.require(int, "q_lora_rank")
    return replace(plain, scale=plain.scale * (hidden / rank) ** 0.5, latent_scale=(hidden / plain.latent_dim) ** 0.5)


LAYER, MLP, OURS = "model.layers.{l}", "model.layers.{l}.mlp", "layers.{l}"
PAIR: list[AnyRule] = [  # of either half
    *(
        replace(rule, source=rule.source.replace("self_attn", "self_attn.HALF"))
        for rule in (*BASE_RULES, *LATENT_RULES)
    ),
    rename(f"{LAYER}.input_layernorm.HALF.weight", f"{OURS}.attention_norm.weight"),
    rename(f"{LAYER}.post_attention_layernorm.HALF.weight", f"{OURS}.ffn_norm.weight"),
    *feed_forward(f"{LAYER}.mlps.HALF", f"{OURS}.mlp"),
]
SHORTCUT = [
    rename(f"{MLP}.router.classifier.weight", f"{OURS}.shortcut.router.weight"),
    rename(f"{MLP}.router.e_score_correction_bias", f"{OURS}.shortcut.router.correction"),
    *experts(f"{MLP}.experts.{{e}}", "gate_proj", "up_proj", "down_proj", f"{OURS}.shortcut.experts.{{e}}"),
]


def _half(rules: list[AnyRule], half: int) -> list[AnyRule]:
    """Rules of one of the two layers."""
    named = [replace(rule, source=rule.source.replace("HALF", str(half))) for rule in rules]
    return [
        replace(rule, every=2, offset=half) if isinstance(rule, Rule) and "{l}" in rule.target else rule
        for rule in named
    ]


RULES = [
    *_half(PAIR, 0),
    *(rule for rule in _half(PAIR, 1) if rule not in BASE_RULES),
    *_half(list(SHORTCUT), 0),
    # Some checkpoints have gates and ups for experts without weights.
    ignore(f"{MLP}.experts.{{e}}.gate_proj.weight", "an expert that gives what it is given has no weights"),
    ignore(f"{MLP}.experts.{{e}}.up_proj.weight", "an expert that gives what it is given has no weights"),
    ignore("model.mtp.{any}", "layers for speculation"),
]
