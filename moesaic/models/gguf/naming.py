"""Where parameters lie in a GGUF file: names are llama.cpp's, alike for all architectures. Torch-free."""

from moesaic.models.spec import ModelSpec
from moesaic.weights.rules import AnyRule, Rule, fused_experts, ignore, packed, rename

BLOCK, LAYER = "blk.{l}", "layers.{l}"
ATTENTION = {  # theirs -> ours
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "attn_q_norm": "q_norm", "attn_k_norm": "k_norm",
    "attn_q_a": "q_a", "attn_q_b": "q_b", "attn_kv_a_mqa": "kv_a", "attn_q_a_norm": "q_a_norm",
    "attn_kv_a_norm": "kv_a_norm", "attn_gate": "gate",
}  # fmt: skip
PARTS = ("gate", "up", "down")


def gguf_rules(spec: ModelSpec, architecture: str) -> list[AnyRule]:
    """The rules of any architecture (`models.naming`)."""
    return [
        rename("token_embd.weight", "embed.weight"),
        rename("output_norm.{p}", "norm.{p}"),
        rename("output.{p}", "lm_head.{p}"),
        rename(f"{BLOCK}.attn_norm.{{p}}", f"{LAYER}.attention_norm.{{p}}"),
        *_norms_between(spec),
        *(rename(f"{BLOCK}.{theirs}.{{p}}", f"{LAYER}.attention.{ours}.{{p}}") for theirs, ours in ATTENTION.items()),
        *packed(f"{BLOCK}.attn_qkv.{{p}}", *(f"{LAYER}.attention.{part}.{{p}}" for part in "qkv")),
        rename(f"{BLOCK}.attn_sinks.weight", f"{LAYER}.attention.sinks"),
        rename(f"{BLOCK}.attn_sinks", f"{LAYER}.attention.sinks"),
        Rule(f"{BLOCK}.attn_kv_b.weight", f"{LAYER}.attention.kv_b.{{e}}.weight", stacked="e", flat=True),
        *(rename(f"{BLOCK}.ffn_{part}.{{p}}", f"{LAYER}.mlp.{part}.{{p}}") for part in PARTS),
        *(rename(f"{BLOCK}.ffn_{part}_shexp.{{p}}", f"{LAYER}.mlp.shared.{part}.{{p}}") for part in PARTS),
        rename(f"{BLOCK}.ffn_gate_inp_shexp.weight", f"{LAYER}.mlp.shared_gate.weight"),
        rename(f"{BLOCK}.ffn_gate_inp.{{p}}", f"{LAYER}.mlp.router.{{p}}"),
        rename(f"{BLOCK}.exp_probs_b.bias", f"{LAYER}.mlp.router.correction"),
        rename(f"{BLOCK}.exp_probs_b", f"{LAYER}.mlp.router.correction"),
        *_experts(),
        ignore("rope_freqs.weight", "the config says it"),
        ignore("rope_factors_{n}.weight", "the config says it"),
        ignore(f"{BLOCK}.rope_freqs.weight", "the config says it"),
        ignore(f"blk.{len(spec.layers)}.{{any}}", "a layer for speculation"),
    ]


def _norms_between(spec: ModelSpec) -> list[AnyRule]:
    """Before the feed-forward, and behind both parts of a layer where it has norms there: what llama.cpp calls the norm
    behind attention is, in the others, that before the feed-forward."""
    sandwich = any(layer.norms == "sandwich" for layer in spec.layers)
    behind = "attention_post_norm" if sandwich else "ffn_norm"
    return [
        rename(f"{BLOCK}.ffn_norm.{{p}}", f"{LAYER}.ffn_norm.{{p}}"),
        rename(f"{BLOCK}.post_attention_norm.{{p}}", f"{LAYER}.{behind}.{{p}}"),
        rename(f"{BLOCK}.post_ffw_norm.{{p}}", f"{LAYER}.ffn_post_norm.{{p}}"),
    ]


def _experts() -> list[AnyRule]:
    """All of a layer stacked; gate over up in one tensor; or, of files before 2024-04, one tensor an expert."""
    target = f"{LAYER}.mlp.experts.{{e}}"
    return [
        *(Rule(f"{BLOCK}.ffn_{part}_exps.{{p}}", f"{target}.{part}.{{p}}", stacked="e") for part in PARTS),
        *(
            rule
            for kind in ("weight", "bias")
            for rule in fused_experts(f"{BLOCK}.ffn_gate_up_exps.{kind}", "", kind=kind)[:2]
        ),
        *(rename(f"{BLOCK}.ffn_{part}.{{e}}.weight", f"{target}.{part}.weight") for part in PARTS),
    ]
