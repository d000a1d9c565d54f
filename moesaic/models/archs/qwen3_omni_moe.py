"""Qwen3-Omni with experts, the text that its thinker reads and writes: Qwen3's layers."""

from moesaic.models.common import (
    DECODER_RULES,
    DENSE_RULES,
    MLP_EXPERT_RULES,
    decoder,
    gqa,
    language_model,
    some_dense,
    text_only,
    under,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec, RouterSpec

ARCHITECTURE = "Qwen3OmniMoeForConditionalGeneration"
MODEL_TYPE = "qwen3_omni_moe"
VOICES = ("im_start", "im_end", "tts_pad", "tts_bos", "tts_eos", "system", "user", "assistant")
SENSES = ("audio", "audio_start", "audio_end", "image", "video", "vision_start", "vision_end", "user")


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    # What it says aloud, and with which voice.
    c.ignore("talker_config", "code2wav_config", "enable_audio_output", *(f"{token}_token_id" for token in VOICES))
    tokens = (f"{token}_token_id" for token in SENSES)
    thinker = c.child("thinker_config", metadata=True)
    c = language_model(thinker, "audio_config", "position_id_per_seconds", "seconds_per_chunk", *tokens, tied=False)
    c.refuse_unless("hidden_act", "silu")
    c.refuse_unless("sliding_window", None)
    c.refuse_unless("use_sliding_window", False)
    c.refuse_unless("shared_expert_intermediate_size", 0)
    bias = c.read(bool, "attention_bias", absent=False)
    attention = gqa(c, num_kv_heads=4, theta=1000000.0, bias=bias, qk_norm="head")
    moe = MoESpec(
        num_experts=c.read(int, "num_experts", "num_local_experts", absent=128),
        intermediate_size=c.read(int, "moe_intermediate_size", absent=768),
        router=RouterSpec(
            top_k=c.read(int, "num_experts_per_tok", absent=8),
            renormalize=c.read(bool, "norm_topk_prob", absent=True),
        ),
    )
    return decoder(c, [LayerSpec(attention=attention, ffn=ffn) for ffn in some_dense(c, moe)])


RULES = [
    *under("thinker.", [*DECODER_RULES, *DENSE_RULES, *MLP_EXPERT_RULES]),
    *text_only("thinker.audio_tower", "thinker.visual", "talker", "code2wav"),
]
