"""Solar Open: DeepSeek-V3's router and shared experts in every layer, behind plain grouped-query attention."""

from moesaic.models.common import DEEPSEEK_RULES, decoder, deepseek_moe, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec

ARCHITECTURE = "SolarOpenForCausalLM"
MODEL_TYPE = "solar_open"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("intermediate_size")  # no layer is dense
    c.refuse_unless("first_k_dense_replace", 0)
    c.refuse_unless("use_qk_norm", False)
    attention = gqa(
        c,
        num_kv_heads=8,
        head_dim=128,
        theta=1_000_000.0,
        bias=c.read(bool, "attention_bias", absent=False),
        output_bias=False,
    )
    ffn = deepseek_moe(c, experts="n_routed_experts", shared="n_shared_experts", num_shared=1)
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


RULES = DEEPSEEK_RULES
