"""OPT, dense: learned positions, layer norms, biases everywhere, a feed-forward that is not gated."""

from moesaic.models.common import activation, decoder, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec, NormSpec
from moesaic.weights.rules import Rule, rename, tied

ARCHITECTURE = "OPTForCausalLM"
MODEL_TYPE = "opt"
PADDING = 2  # rows of the table of positions before the first position's


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    hidden, heads = c.require(int, "hidden_size"), c.require(int, "num_attention_heads")
    c.refuse_unless("do_layer_norm_before", True)
    c.refuse_unless("_remove_final_layer_norm", False)
    c.refuse_unless("word_embed_proj_dim", hidden, None)
    c.refuse_unless("layer_norm_elementwise_affine", True)
    c.ignore("dropout", "layerdrop", "init_std", "activation_dropout")
    bias = c.read(bool, "enable_bias", absent=True)
    if heads < 1 or hidden % heads:
        raise c.error("num_attention_heads", f"must divide hidden_size = {hidden}")
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        scale=(hidden // heads) ** -0.5,
        rope=None,
        qkv_bias=bias,
        output_bias=bias,
    )
    ffn = DenseSpec(
        intermediate_size=c.require(int, "ffn_dim"),
        activation=activation(c, "activation_function", absent="relu"),
        bias=bias,
        gated=False,
    )
    layers = [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c)
    norm = NormSpec(eps=1e-5, kind="layer", bias=True)
    return decoder(c, layers, norm=norm, tied=True, learned_positions=True)


DECODER, LAYER = "model.decoder", "model.decoder.layers.{l}"
RULES = [
    rename(f"{DECODER}.embed_tokens.weight", "embed.weight"),
    Rule(f"{DECODER}.embed_positions.weight", "positions.weight", start=PADDING),
    rename(f"{DECODER}.final_layer_norm.{{p}}", "norm.{p}"),
    rename("lm_head.weight", "lm_head.weight"),
    tied("lm_head.weight", "embed.weight"),
    rename(f"{LAYER}.self_attn_layer_norm.{{p}}", "layers.{l}.attention_norm.{p}"),
    rename(f"{LAYER}.final_layer_norm.{{p}}", "layers.{l}.ffn_norm.{p}"),
    *(Rule(f"{LAYER}.self_attn.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}") for part in "qkv"),
    rename(f"{LAYER}.self_attn.out_proj.{{p}}", "layers.{l}.attention.o.{p}"),
    rename(f"{LAYER}.fc1.{{p}}", "layers.{l}.mlp.up.{p}"),
    rename(f"{LAYER}.fc2.{{p}}", "layers.{l}.mlp.down.{p}"),
]
