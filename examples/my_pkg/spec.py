"""A model like OLMoE as data: what it computes, and where its weights lie in a checkpoint."""

from moesaic.models.common import DECODER_RULES, MLP_EXPERT_RULES, decoder, gqa, num_layers
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.refuse_unless("hidden_act", "silu")
    attention = gqa(c, qk_norm="full", clip_qkv=c.read(float | None, "clip_qkv", absent=None))
    c.refuse_unless("attention_bias", False)
    experts = MoESpec(
        num_experts=c.require(int, "num_experts"),
        intermediate_size=c.require(int, "intermediate_size"),
        router=RouterSpec(
            top_k=c.require(int, "num_experts_per_tok"),
            renormalize=c.read(bool, "norm_topk_prob", absent=False),
        ),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=experts)] * num_layers(c))


RULES = [*DECODER_RULES, *MLP_EXPERT_RULES]
