"""Nemotron-H: a layer is Mamba 2, or attention without positions, or experts, or a feed-forward; none of them gated."""

from dataclasses import replace

from moesaic.models.common import activation, decoder, deepseek_moe, gqa, mamba2_rules, under
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, Mamba2Spec, MixerSpec, ModelSpec, MoESpec, NormSpec, SharedSpec
from moesaic.weights.rules import Rule, ignore, rename

ARCHITECTURE = "NemotronHForCausalLM"
MODEL_TYPE = "nemotron_h"
PATTERN = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
KINDS = {"linear_attention": "mamba", "full_attention": "attention", **{kind: kind for kind in PATTERN.values()}}

# Ways to compute the same, of training, of speculation, said by use_bias or the list of layers; positions do not show.
IGNORED = """
    num_hidden_layers num_logits_to_keep chunk_size mamba_chunk_size use_mamba_kernels expand mamba_expand
    mamba_ssm_cache_dtype moe_shared_expert_overlap residual_in_fp32 rescale_prenorm_residual time_step_max
    time_step_floor time_step_limit mamba_dt_max mamba_dt_limit mamba_dt_init_floor mamba_proj_bias
    mtp_layers_block_type mtp_hybrid_override_pattern rope_theta rope_parameters partial_rotary_factor
"""


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    for key, value in {"mamba_hidden_act": "silu", "attention_bias": False, "sliding_window": None}.items():
        c.refuse_unless(key, value)
    c.ignore(*IGNORED.split())
    mlp = DenseSpec(
        intermediate_size=c.read(int, "intermediate_size", absent=21504),
        activation=activation(c, "mlp_hidden_act", absent="relu2"),
        bias=c.read(bool, "mlp_bias", absent=False),
        gated=False,
    )
    mixers: dict[str, MixerSpec] = {"mamba": _mamba(c), "attention": gqa(c, num_kv_heads=8, head_dim=128, rotary=False)}
    ffns: dict[str, DenseSpec | MoESpec] = {"mlp": mlp, "moe": _experts(c, mlp)}
    eps = c.read(float, "layer_norm_epsilon", "rms_norm_eps", absent=1e-5)
    layers = [LayerSpec(attention=mixers.get(kind), ffn=ffns.get(kind)) for kind in _kinds(c)]
    return decoder(c, layers, norm=NormSpec(eps=eps))


def _kinds(c: ConfigReader) -> list[str]:
    """What each layer is: by a list, or by a pattern of letters."""
    pattern = c.read(str | None, "hybrid_override_pattern", absent=None)
    given = c.read(list | None, "layers_block_type", "layer_types", absent=None) or list(pattern or "ME*-")
    names = PATTERN if set(given) <= set(PATTERN) else KINDS
    wrong = sorted(set(map(str, given)) - set(names))
    if wrong:
        raise c.error("layers_block_type", f"{', '.join(wrong)} are no kinds of layers; there are {', '.join(KINDS)}")
    return [names[kind] for kind in given]


def _mamba(c: ConfigReader) -> Mamba2Spec:
    return Mamba2Spec(
        num_heads=c.read(int, "mamba_num_heads", absent=128),
        head_dim=c.read(int, "mamba_head_dim", absent=64),
        state_size=c.read(int, "ssm_state_size", absent=128),
        num_groups=c.read(int, "n_groups", "mamba_n_groups", absent=8),
        conv_width=c.read(int, "conv_kernel", "mamba_d_conv", absent=4),
        bias=c.read(bool, "use_bias", absent=False),
        conv_bias=c.read(bool, "use_conv_bias", "mamba_conv_bias", absent=True),
        step_limits=(c.read(float, "time_step_min", "mamba_dt_min", absent=0.001), float("inf")),
    )


def _experts(c: ConfigReader, mlp: DenseSpec) -> MoESpec:
    """Experts like the plain feed-forward `mlp`, but of other sizes."""
    c.refuse_unless("n_shared_experts", 1)
    shared = replace(mlp, intermediate_size=c.read(int, "moe_shared_expert_intermediate_size", absent=7688))
    latent = c.read(int | None, "moe_latent_size", absent=None)
    if latent is not None and mlp.bias:
        raise c.error("moe_latent_size", "cannot be with mlp_bias: no projection to it with a bias is known")
    more = {"shared": SharedSpec(ffn=shared), "latent_size": latent}
    return replace(deepseek_moe(c), activation=mlp.activation, gated=False, **more)


MIXER, MLP = "model.layers.{l}.mixer", "layers.{l}.mlp"
INNER = [
    rename("model.embeddings.weight", "embed.weight"),
    rename("model.norm_f.weight", "norm.weight"),
    *(rename("model.layers.{l}.norm.weight", f"layers.{{l}}.{part}_norm.weight") for part in ("attention", "ffn")),
    *mamba2_rules(MIXER),
    *(rename(f"{MIXER}.{part}_proj.{{p}}", f"layers.{{l}}.attention.{part}.{{p}}") for part in "qkvo"),
    rename(f"{MIXER}.gate.weight", f"{MLP}.router.weight"),
    *(rename(f"{MIXER}.fc{n}_latent_proj.weight", f"{MLP}.latent_{way}.weight") for n, way in ((1, "in"), (2, "out"))),
    rename(f"{MIXER}.gate.e_score_correction_bias", f"{MLP}.router.correction"),
    *(
        rule
        for part in ("up", "down")
        for rule in (
            rename(f"{MIXER}.{part}_proj.{{p}}", f"{MLP}.{part}.{{p}}"),
            rename(f"{MIXER}.shared_experts.{part}_proj.{{p}}", f"{MLP}.shared.{part}.{{p}}"),
            rename(f"{MIXER}.experts.{{e}}.{part}_proj.weight", f"{MLP}.experts.{{e}}.{part}.weight"),
            Rule(f"{MIXER}.experts.{part}_proj", f"{MLP}.experts.{{e}}.{part}.weight", stacked="e"),
        )
    ),
]
HEAD = [rename("lm_head.weight", "lm_head.weight"), ignore("mtp.{any}", "for speculation")]
RULES = [*INNER, *under("backbone.", INNER, instead_of="model."), *HEAD]
