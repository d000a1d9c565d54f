"""Tiny models of the architectures that `models.hf_backend` serves, made of the configs in `backend_configs`."""

from copy import deepcopy
from typing import Any

from tests.families.backend_configs import CONFIGS, TEXT, TOWERS
from tests.families.common import ABSENT, COMMON

FAMILIES = {  # architecture -> model type of its tiny config
    "AXK1ForCausalLM": "axk1",
    "AXK2ForCausalLM": "axk2",
    "AfmoeForCausalLM": "afmoe",
    "AriaForConditionalGeneration": "aria",
    "AriaTextForCausalLM": "aria_text",
    "BailingHybridForCausalLM": "bailing_hybrid",
    "BeamForCausalLM": "beam",
    "DbrxForCausalLM": "dbrx",
    "DeepseekOcr2ForConditionalGeneration": "deepseek_ocr2",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV32ForCausalLM": "deepseek_v32",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "DeepseekV4ForCausalLM": "deepseek_v4",
    "Dots3NoteForCausalLM": "dots3_note_text",
    "Dots3NoteForConditionalGeneration": "dots3_note",
    "Ernie4_5_VLMoeForConditionalGeneration": "ernie4_5_vl_moe",
    "FlintForCausalLM": "flint",
    "Gemma4ForCausalLM": "gemma4_text",
    "Gemma4ForConditionalGeneration": "gemma4",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe",
    "Glm5NextForConditionalGeneration": "glm5_next",
    "GlmMoeDsaForCausalLM": "glm_moe_dsa",
    "GraniteMoeHybridForCausalLM": "granitemoehybrid",
    "GraniteMoeSWAForCausalLM": "granitemoe_swa",
    "HYV3ForCausalLM": "hy_v3",
    "HYV4ForCausalLM": "hy_v4",
    "Inkling2ForCausalLM": "inkling2_text",
    "Inkling2ForConditionalGeneration": "inkling2",
    "InklingForCausalLM": "inkling_text",
    "JambaForCausalLM": "jamba",
    "JetMoeForCausalLM": "jetmoe",
    "KimiLinearForCausalLM": "kimi_linear",
    "Kolibri1ForCausalLM": "kolibri1",
    "LagunaForCausalLM": "laguna",
    "Lfm2MoeForCausalLM": "lfm2_moe",
    "Llama4ForCausalLM": "llama4_text",
    "LongcatFlashForCausalLM": "longcat_flash",
    "MellumForCausalLM": "mellum",
    "MiMoV2FlashForCausalLM": "mimo_v2_flash",
    "MiniMaxForCausalLM": "minimax",
    "MiniMaxM3SparseForConditionalGeneration": "minimax_m3_vl",
    "MiniMaxM3VLForCausalLM": "minimax_m3_vl_text",
    "Mistral4ForCausalLM": "mistral4",
    "MistralLarge4ForConditionalGeneration": "mistral_large4",
    "MuseSparkForConditionalGeneration": "muse_spark",
    "NemotronHForCausalLM": "nemotron_h",
    "PhimoeForCausalLM": "phimoe",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3OmniMoeForConditionalGeneration": "qwen3_omni_moe",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "qwen3_omni_moe_thinker",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
    "Qwen4ExpForCausalLM": "qwen4_exp_text",
    "Qwen4ExpForConditionalGeneration": "qwen4_exp",
    "SolarOpenForCausalLM": "solar_open",
    "Step3p7ForConditionalGeneration": "step3p7",
    "UnlimitedOcrForConditionalGeneration": "unlimited_ocr",
    "ZayaForCausalLM": "zaya",
}

# model type -> key and model type of the part that generates text, and what leaves the others out
PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_omni_moe": ("thinker_config", "qwen3_omni_moe_thinker", {"enable_audio_output": False})
}


def config_of(family: str, **overrides: Any) -> Any:
    """transformers' config of a family's tiny model; `overrides` are keys of its decoder."""
    from transformers import AutoConfig

    keys = {"tie_word_embeddings": False, **COMMON, **CONFIGS.get(family, TEXT.get(family, {})), **overrides}
    keys = deepcopy({key: value for key, value in keys.items() if value is not ABSENT})  # transformers writes into them
    if family in PARTS:
        inner = config_of(PARTS[family][1], **overrides)
        return AutoConfig.for_model(family, **{PARTS[family][0]: inner.to_dict()}, **PARTS[family][2])
    if family not in TEXT:
        return AutoConfig.for_model(family, **keys)
    return AutoConfig.for_model(family, text_config=keys, tie_word_embeddings=False, **_present(TOWERS[family]))


def _present(keys: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _present(value) if isinstance(value, dict) else value for key, value in keys.items() if value is not ABSENT
    }


def model_of(architecture: str, **overrides: Any) -> Any:
    """transformers' own random model of an architecture, in fp32, computing as plainly as it can."""
    import transformers

    config = config_of(FAMILIES[architecture], **overrides)
    kinds = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return getattr(transformers, architecture)._from_config(config, **kinds).float().eval()
