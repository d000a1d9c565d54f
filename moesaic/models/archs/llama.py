"""Llama: the dense decoder that most others are a variation of (Llama 1 to 3.x)."""

from moesaic.models.common import DECODER_RULES, DENSE_RULES, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    c.refuse_unless("pretraining_tp", 1, None)
    attention = gqa(c, bias=c.read(bool, "attention_bias", absent=False))
    ffn = DenseSpec(
        intermediate_size=c.require(int, "intermediate_size"),
        bias=c.read(bool, "mlp_bias", absent=False),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn)] * num_layers(c))


RULES = [*DECODER_RULES, *DENSE_RULES]
