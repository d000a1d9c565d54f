"""Rules for the usual names of tensors."""

from collections.abc import Iterable
from dataclasses import replace

from moesaic.weights.rules import AnyRule, Rule, experts, fused_experts, ignore, rename, tied


def text_only(*parts: str) -> list[AnyRule]:
    """Leave out what these parts of a model that sees or hears hold: only text is served."""
    return [ignore(f"{part}.{{any}}", "of a part that text does not need") for part in parts]


def under(prefix: str, rules: Iterable[AnyRule], instead_of: str = "") -> list[AnyRule]:
    """The same rules for a checkpoint whose names begin with `prefix`, in place of `instead_of` where they have it."""
    return [replace(rule, source=prefix + rule.source.removeprefix(instead_of)) for rule in rules]


def feed_forward(source: str, target: str) -> list[Rule]:
    """The three projections of a gated feed-forward, by their usual names."""
    return [rename(f"{source}.{part}_proj.{{p}}", f"{target}.{part}.{{p}}") for part in ("gate", "up", "down")]


BASE_RULES = [  # all but the layers' norms and their feed-forward
    rename("model.embed_tokens.weight", "embed.weight"),
    rename("model.norm.weight", "norm.weight"),
    rename("lm_head.{p}", "lm_head.{p}"),
    tied("lm_head.weight", "embed.weight"),
    *(
        rename(f"model.layers.{{l}}.self_attn.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}")
        for part in "qkvo"
    ),
    rename("model.layers.{l}.self_attn.{n}_norm.weight", "layers.{l}.attention.{n}_norm.weight"),
    rename("model.layers.{l}.self_attn.sinks", "layers.{l}.attention.sinks"),
    ignore("model.layers.{l}.self_attn.rotary_emb.inv_freq", "a buffer of old versions, computed here"),
]
DECODER_RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.ffn_norm.weight"),
]
MLP = "model.layers.{l}.mlp"
DENSE_RULES = feed_forward(MLP, "layers.{l}.mlp")
MLP_EXPERT_RULES = [  # one tensor an expert, or all of a layer stacked: save_pretrained has written both
    rename(f"{MLP}.gate.weight", "layers.{l}.mlp.router.weight"),
    *experts(f"{MLP}.experts.{{e}}", gate="gate_proj", up="up_proj", down="down_proj"),
    *fused_experts(f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"),
]

_BLOCK, _SHARED = "model.layers.{l}.block_sparse_moe", "layers.{l}.mlp.shared"
BLOCK_EXPERT_RULES = [  # fused experts, and perhaps a fused shared one beside their block
    rename(f"{_BLOCK}.router.layer.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{_BLOCK}.input_linear.weight", f"{_BLOCK}.output_linear.weight"),
    rename(f"{_BLOCK}.router.weight", "layers.{l}.mlp.router.weight"),
    *fused_experts(f"{_BLOCK}.experts.gate_up_proj", f"{_BLOCK}.experts.down_proj"),
    Rule("model.layers.{l}.shared_mlp.input_linear.weight", f"{_SHARED}.gate.weight", part=0, parts=2),
    Rule("model.layers.{l}.shared_mlp.input_linear.weight", f"{_SHARED}.up.weight", part=1, parts=2),
    rename("model.layers.{l}.shared_mlp.output_linear.weight", f"{_SHARED}.down.weight"),
]
CORRECTION_RULES = [  # it has been the router's, and the block's
    rename(f"{MLP}.gate.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
    rename(f"{MLP}.e_score_correction_bias", "layers.{l}.mlp.router.correction"),
]
SHARED_RULES = [
    rule
    for name in ("shared_experts", "shared_expert", "shared_mlp")
    for rule in feed_forward(f"{MLP}.{name}", "layers.{l}.mlp.shared")
] + [rename(f"{MLP}.shared_expert_gate.weight", "layers.{l}.mlp.shared_gate.weight")]
DEEPSEEK_RULES = [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES, *CORRECTION_RULES, *SHARED_RULES]
_ATTENTION = "model.layers.{l}.self_attn"
LATENT_RULES = [  # of latent attention; its o_proj and a plain q_proj have their usual names
    *(rename(f"{_ATTENTION}.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}") for part in ("q_a", "q_b")),
    rename(f"{_ATTENTION}.kv_a_proj_with_mqa.{{p}}", "layers.{l}.attention.kv_a.{p}"),
    rename(f"{_ATTENTION}.q_a_layernorm.weight", "layers.{l}.attention.q_a_norm.weight"),
    rename(f"{_ATTENTION}.kv_a_layernorm.weight", "layers.{l}.attention.kv_a_norm.weight"),
    Rule(f"{_ATTENTION}.kv_b_proj.weight", "layers.{l}.attention.kv_b.{e}.weight", stacked="e", flat=True),
]
INDEXER_RULES = [
    rename(f"{_ATTENTION}.indexer.{theirs}.{{p}}", f"layers.{{l}}.attention.indexer.{ours}.{{p}}")
    for theirs, ours in {"wq_b": "q", "wk": "k", "k_norm": "k_norm", "weights_proj": "weights"}.items()
]
LATENT_DEEPSEEK_RULES = [*DEEPSEEK_RULES, *LATENT_RULES]
SANDWICH_RULES = [
    *BASE_RULES,
    rename("model.layers.{l}.input_layernorm.weight", "layers.{l}.attention_norm.weight"),
    rename("model.layers.{l}.post_attention_layernorm.weight", "layers.{l}.attention_post_norm.weight"),
    rename("model.layers.{l}.pre_feedforward_layernorm.weight", "layers.{l}.ffn_norm.weight"),
    rename("model.layers.{l}.post_feedforward_layernorm.weight", "layers.{l}.ffn_post_norm.weight"),
]
