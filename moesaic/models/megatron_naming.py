"""Where the parameters lie in a checkpoint of Megatron-core's, as `weights.layouts.megatron` puts its ranks together.

Megatron names all models alike (GPTModel of megatron/core/models/gpt), so the rules follow from what is computed. Both
spellings of norms are known: those of Transformer Engine, where a norm belongs to the projection behind it, and those
of the plain layers. Queries, keys and values are one matrix, `[groups, (heads a group + 2) * head_dim, hidden]`; gate
and up are one, gate first; the vocabulary is padded.
"""

from moesaic.core.errors import UnsupportedError
from moesaic.models.spec import AttentionSpec, DenseSpec, ModelSpec, MoESpec, NormSpec
from moesaic.weights.rules import AnyRule, Rule, ignore, rename

LAYER = "decoder.layers.{l}"
ATTENTION = f"{LAYER}.self_attention"
MLP = f"{LAYER}.mlp"
OURS = "layers.{l}.attention"


def megatron_rules(spec: ModelSpec, name: str) -> list[AnyRule]:
    """The rules of a model with this spec, of an architecture with this name.

    Raises:
        UnsupportedError: Megatron-core has no such model, or stores it in a way that its names do not tell.
    """
    gated = {ffn.gated for layer in spec.layers for ffn in _feed_forwards(layer.ffn)}
    if len(gated) > 1:
        raise UnsupportedError(f"{name}: Megatron-core's layers have a gate in all feed-forwards or in none")
    for norm in (spec.norm, *(layer.norm for layer in spec.layers if layer.norm is not None)):
        _refuse_offset(norm, name)
    return [
        Rule("embedding.word_embeddings.weight", "embed.weight", padded=True),
        rename("embedding.position_embeddings.weight", "positions.weight"),
        Rule("output_layer.{p}", "lm_head.{p}", padded=True),
        *([ignore("output_layer.weight", "the embeddings' copy on another rank")] if spec.tied_embeddings else []),
        rename("decoder.final_layernorm.{p}", "norm.{p}"),
        ignore("rotary_pos_emb.inv_freq", "a buffer, computed here"),
        *_attention(spec, name),
        rename(f"{LAYER}.input_layernorm.{{p}}", "layers.{l}.attention_norm.{p}"),
        rename(f"{ATTENTION}.linear_qkv.layer_norm_{{p}}", "layers.{l}.attention_norm.{p}"),
        rename(f"{LAYER}.pre_mlp_layernorm.{{p}}", "layers.{l}.ffn_norm.{p}"),
        rename(f"{MLP}.linear_fc1.layer_norm_{{p}}", "layers.{l}.ffn_norm.{p}"),
        *_feed_forward(MLP, "layers.{l}.mlp", True in gated),
        *_feed_forward(f"{MLP}.shared_experts", "layers.{l}.mlp.shared", True in gated),
        *_feed_forward(f"{MLP}.experts.local_experts.{{e}}", "layers.{l}.mlp.experts.{e}", True in gated),
        rename(f"{MLP}.shared_experts.gate_weight", "layers.{l}.mlp.shared_gate.weight"),
        rename(f"{MLP}.router.{{p}}", "layers.{l}.mlp.router.{p}"),
        rename(f"{MLP}.router.expert_bias", "layers.{l}.mlp.router.correction"),
        ignore(f"{MLP}.router.local_tokens_per_expert", "a count that training keeps"),
    ]


def _attention(spec: ModelSpec, name: str) -> list[AnyRule]:
    attentions = [layer.attention for layer in spec.layers if isinstance(layer.attention, AttentionSpec)]
    shapes = {(a.num_heads, a.num_kv_heads, a.head_dim, a.value_dim or a.head_dim, a.qk_norm) for a in attentions}
    if len(attentions) < len(spec.layers) or len(shapes) > 1:
        raise UnsupportedError(
            f"{name}: of Megatron-core's checkpoints, those with the same attention everywhere are read"
        )
    heads, groups, size, value_size, norm = shapes.pop()
    if value_size != size or norm == "full" or any(a.output_gate for a in attentions):
        raise UnsupportedError(f"{name}: Megatron-core's attention has no such norms, values or gates")
    queries, every = heads // groups * size, (heads // groups + 2) * size
    turns = {"q": (0, queries, every), "k": (queries, size, every), "v": (queries + size, size, every)}
    return [
        *(
            Rule(f"{ATTENTION}.linear_qkv.{{p}}", f"layers.{{l}}.attention.{n}.{{p}}", turns=t)
            for n, t in turns.items()
        ),
        rename(f"{ATTENTION}.linear_proj.{{p}}", "layers.{l}.attention.o.{p}"),
        *(rename(f"{ATTENTION}.{n}_layernorm.{{p}}", f"layers.{{l}}.attention.{n}_norm.{{p}}") for n in "qk"),
    ]


def _feed_forward(source: str, target: str, gated: bool) -> list[AnyRule]:
    down = rename(f"{source}.linear_fc2.{{p}}", f"{target}.down.{{p}}")
    if not gated:
        return [rename(f"{source}.linear_fc1.{{p}}", f"{target}.up.{{p}}"), down]
    halves = enumerate(("gate", "up"))
    return [*(Rule(f"{source}.linear_fc1.{{p}}", f"{target}.{n}.{{p}}", part=i, parts=2) for i, n in halves), down]


def _feed_forwards(ffn: DenseSpec | MoESpec | None) -> list[DenseSpec | MoESpec]:
    shared = [ffn.shared.ffn] if isinstance(ffn, MoESpec) and ffn.shared is not None else []
    return [*([] if ffn is None else [ffn]), *shared]


def _refuse_offset(norm: NormSpec, name: str) -> None:
    """Megatron stores norms less one by a setting of training (--apply-layernorm-1p) that the tensors do not tell."""
    if norm.offset or norm.factor != 1.0:
        raise UnsupportedError(f"{name}: how Megatron-core stored norms that begin at {norm.offset} cannot be told")
