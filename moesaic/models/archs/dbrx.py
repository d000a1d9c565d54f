"""DBRX: queries, keys and values in one matrix and clipped; layer norms without bias; experts one below the other."""

from moesaic.core.errors import UnsupportedError
from moesaic.models.common import activation, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, LayerSpec, ModelSpec, MoESpec, NormSpec, RouterSpec
from moesaic.weights.rules import Rule, packed, rename, tied

ARCHITECTURE = "DbrxForCausalLM"
MODEL_TYPE = "dbrx"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.call(hidden_size="d_model", num_attention_heads="n_heads", num_hidden_layers="n_layers")
    c.call(max_position_embeddings="max_seq_len")
    c.ignore("resid_pdrop", "emb_pdrop")
    attention = _attention(c)
    f = c.child("ffn_config", metadata=True)
    f.ignore("moe_jitter_eps", "moe_loss_weight", "hidden_size")  # of training; the model's own counts
    # The weights' norm, by which they are divided: the sum, or nothing.
    f.refuse_unless("moe_normalize_expert_weights", 1, None)
    ffn = MoESpec(
        num_experts=f.require(int, "moe_num_experts"),
        intermediate_size=f.require(int, "ffn_hidden_size"),
        router=RouterSpec(
            top_k=f.require(int, "moe_top_k"),
            renormalize=f.read(float | None, "moe_normalize_expert_weights", absent=1.0) is not None,
        ),
        activation=activation(f.child("ffn_act_fn"), "name"),
    )
    norm = NormSpec(eps=1e-5, kind="layer")
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c), norm=norm)


def _attention(c: ConfigReader) -> AttentionSpec:
    a = c.child("attn_config", metadata=True)
    a.ignore("attn_pdrop")
    kv_heads = a.read(int, "kv_n_heads", absent=1)
    c.refuse_unless("num_key_value_heads", kv_heads)
    clip = a.read(float | None, "clip_qkv", absent=None)
    theta = a.read(float, "rope_theta", absent=10000.0)
    attention = gqa(c, num_kv_heads=kv_heads, theta=theta, clip_qkv=clip)
    if "rope_theta" in a and attention.rope is not None and attention.rope.theta != theta:
        # What transformers saves of an older config; it then computes with its own default.
        raise UnsupportedError(
            f"{c.path}: attn_config.rope_theta = {theta} but rope_parameters say {attention.rope.theta}: "
            "keep the one that the model was trained with"
        )
    return attention


BLOCK, ATTENTION = "transformer.blocks.{l}", "layers.{l}.attention"
EXPERTS, OURS = f"{BLOCK}.ffn.experts.mlp", "layers.{l}.mlp.experts.{e}"
RULES = [
    rename("transformer.wte.weight", "embed.weight"),
    rename("transformer.norm_f.weight", "norm.weight"),
    rename("lm_head.weight", "lm_head.weight"),
    tied("lm_head.weight", "embed.weight"),
    rename(f"{BLOCK}.norm_attn_norm.norm_1.weight", "layers.{l}.attention_norm.weight"),
    rename(f"{BLOCK}.norm_attn_norm.norm_2.weight", "layers.{l}.ffn_norm.weight"),
    *packed(f"{BLOCK}.norm_attn_norm.attn.Wqkv.weight", *(f"{ATTENTION}.{part}.weight" for part in "qkv")),
    rename(f"{BLOCK}.norm_attn_norm.attn.out_proj.weight", f"{ATTENTION}.o.weight"),
    rename(f"{BLOCK}.ffn.router.layer.weight", "layers.{l}.mlp.router.weight"),
    Rule(f"{EXPERTS}.w1", f"{OURS}.gate.weight", stacked="e", flat=True),
    Rule(f"{EXPERTS}.v1", f"{OURS}.up.weight", stacked="e", flat=True),
    Rule(f"{EXPERTS}.w2", f"{OURS}.down.weight", stacked="e", flat=True, transposed=True),
]
