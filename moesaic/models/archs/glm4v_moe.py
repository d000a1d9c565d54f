"""GLM-4.5V, its text: half of a head rotates; DeepSeek-V3's router and shared expert."""

from moesaic.models.common import (
    DEEPSEEK_RULES,
    activation,
    decoder,
    deepseek_moe,
    gqa,
    language_model,
    num_layers,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "Glm4vMoeForConditionalGeneration"
MODEL_TYPE = "glm4v_moe"
TOKENS = [f"{kind}{which}_token_id" for kind in ("image", "video") for which in ("", "_start", "_end")]


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c = language_model(c, *TOKENS, tied=False)
    c.refuse_unless("use_qk_norm", False)
    bias = c.read(bool, "attention_bias", absent=True)
    attention = gqa(c, num_kv_heads=8, bias=bias, output_bias=False, partial_rotary=0.5)
    moe = deepseek_moe(c, experts="n_routed_experts", shared="n_shared_experts", num_shared=1)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=1)
    ffns = [dense if layer < first else moe for layer in range(num_layers(c))]
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in ffns])


INNER = [rule for rule in DEEPSEEK_RULES if rule.source.startswith("model.")]
RULES = [
    *(rule for rule in DEEPSEEK_RULES if rule not in INNER),
    *under("model.language_model.", INNER, instead_of="model."),
    *text_only("model.visual"),
]
