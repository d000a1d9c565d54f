"""MiniMax-Text-01: layers of lightning attention, and of attention in between; norms replace the residual, which is
weighed where something is added to it."""

import math

from moesaic.models.common import DECODER_RULES, MLP_EXPERT_RULES, decoder, gqa, kinds_of_layers, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, LinearAttentionSpec, ModelSpec, MoESpec, RouterSpec
from moesaic.weights.rules import AnyRule, Rule, experts, ignore, rename

ARCHITECTURE = "MiniMaxForCausalLM"
MODEL_TYPE = "minimax"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    c.ignore("router_jitter_noise")  # added in training only
    c.ignore("block_size")  # of the reference's way to compute; here it is token by token
    window = c.read(int | None, "sliding_window", absent=None)
    attention = gqa(c, num_kv_heads=8, theta=1000000.0, window=window)
    moe = MoESpec(
        num_experts=c.read(int, "num_local_experts", "num_experts", absent=8),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(top_k=c.read(int, "num_experts_per_tok", absent=2), renormalize=True),
    )
    kinds = kinds_of_layers(
        c,
        "layer_types",
        ("linear_attention", "full_attention"),
        lambda layer: "full_attention" if (layer + 1) % 2 else "linear_attention",
    )
    shares = {kind: _shares(c, f"{kind.removesuffix('_attention')}_attn") for kind in ("linear_attention", *kinds)}
    layers = [
        LayerSpec(
            attention=attention if kind == "full_attention" else _lightning(c, attention.head_dim, layer),
            ffn=moe,
            norms="residual",
            attention_shares=shares[kind],
            ffn_shares=_shares(c, "mlp"),
        )
        for layer, kind in enumerate(kinds)
    ]
    return decoder(c, layers)


def _shares(c: ConfigReader, name: str) -> tuple[float, float]:
    """Factors of the residual and of what is added to it."""
    return c.read(float, f"{name}_alpha_factor", absent=1.0), c.read(float, f"{name}_beta_factor", absent=1.0)


def _lightning(c: ConfigReader, head_dim: int, layer: int) -> LinearAttentionSpec:
    """A layer's heads keep more the later the head is, and the later the layer."""
    heads = c.require(int, "num_attention_heads")
    share = 1 - layer / (num_layers(c) - 1 + 1e-5) + 1e-5
    rates = [2 ** (-8 * (head + 1) / heads) * share for head in range(heads)]
    decays = tuple(math.exp(-rate) for rate in rates)
    return LinearAttentionSpec(num_heads=heads, head_dim=head_dim, decays=decays, norm_eps=1e-6)


ATTENTION, BLOCK = "model.layers.{l}.self_attn", "model.layers.{l}.block_sparse_moe"


def RULES(model: ModelSpec) -> list[AnyRule]:
    """Where the parameters lie. Head after head, lightning attention has its query, its key and its value."""
    dims = {layer.attention.head_dim for layer in model.layers if isinstance(layer.attention, LinearAttentionSpec)}
    return [
        *DECODER_RULES,
        *(
            Rule(f"{ATTENTION}.qkv_proj.weight", f"layers.{{l}}.attention.{part}.weight", turns=(i * dim, dim, 3 * dim))
            for dim in dims
            for i, part in enumerate("qkv")
        ),
        rename(f"{ATTENTION}.out_proj.weight", "layers.{l}.attention.o.weight"),
        rename(f"{ATTENTION}.output_gate.weight", "layers.{l}.attention.gate.weight"),
        rename(f"{ATTENTION}.norm.weight", "layers.{l}.attention.norm.weight"),
        *(
            ignore(f"{ATTENTION}.{name}", "decays, computed here")
            for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
        ),
        *MLP_EXPERT_RULES,
        rename(f"{BLOCK}.gate.weight", "layers.{l}.mlp.router.weight"),
        *experts(f"{BLOCK}.experts.{{e}}", gate="w1", up="w3", down="w2"),
        *experts("model.layers.{l}.mlp.experts.{e}", gate="w1", up="w3", down="w2"),
    ]
