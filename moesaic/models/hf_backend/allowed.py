"""The allow-list of the backend: what a parity test backs (tests/families/backend.py), and nothing else. Torch-free.

An architecture that has a spec of ours is served by it, whether it is here or not, unless `--model-impl transformers`
asks for this way.
"""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["packed", "request"]


@dataclass(frozen=True)
class Allowed:
    """An architecture, and how it is run.

    Attributes:
        mode: "packed": a step's sequences in one row over our paged cache; "request": one cache of transformers'
            a sequence, prompts computed whole, nothing found in the prefix cache.
        experts: whether our kernels compute the experts, or transformers' own code.
        attention: transformers' attention where the mode is "request"; None for its own choice.
        resumes: "replayed" where a model treats its output otherwise than a prompt: after a preemption, the output is
            computed again token by token.
        part: of the model, the name of the one that generates text, where it is a model of its own (class, config's
            key); the others are left out.
        remarks: limits, for people.
        remote: the class that `auto_map` names, where the folder's own code computes.
    """

    architecture: str
    mode: Mode
    experts: Literal["ours", "transformers"] = "ours"
    attention: str | None = None
    resumes: Literal["whole", "replayed"] = "whole"
    part: tuple[str, str] | None = None
    remarks: str = ""
    remote: str = ""


REFUSED = {  # known, tried, and not served; with the reason
    "DogeForCausalLM": "its experts are chosen by scores of other tokens, so what it computes of a token depends on "
    "how many others are computed with it, in transformers too",
}
_PACKED = """
    AXK1ForCausalLM AfmoeForCausalLM AriaForConditionalGeneration AriaTextForCausalLM BeamForCausalLM
    DeepseekOcr2ForConditionalGeneration DeepseekV2ForCausalLM DeepseekV3ForCausalLM
    Ernie4_5_VLMoeForConditionalGeneration FlintForCausalLM Gemma4ForCausalLM Gemma4ForConditionalGeneration
    Glm4MoeLiteForCausalLM Glm4vMoeForConditionalGeneration GraniteMoeSWAForCausalLM HYV3ForCausalLM
    Kolibri1ForCausalLM LagunaForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM Mistral4ForCausalLM
    PhimoeForCausalLM Qwen3OmniMoeThinkerForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    SolarOpenForCausalLM
"""
_PACKED_THEIR_EXPERTS = """
    DbrxForCausalLM JetMoeForCausalLM LongcatFlashForCausalLM MuseSparkForConditionalGeneration
    Step3p7ForConditionalGeneration
"""
_REQUEST = """
    AXK2ForCausalLM BailingHybridForCausalLM DeepseekV32ForCausalLM Dots3NoteForCausalLM
    Dots3NoteForConditionalGeneration GlmMoeDsaForCausalLM GraniteMoeHybridForCausalLM InklingForCausalLM
    JambaForCausalLM KimiLinearForCausalLM Lfm2MoeForCausalLM MiniMaxForCausalLM MiniMaxM3VLForCausalLM
    MiniMaxM3SparseForConditionalGeneration NemotronHForCausalLM Qwen3NextForCausalLM Qwen3_5MoeForCausalLM
    Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration ZayaForCausalLM
"""
_REQUEST_THEIR_EXPERTS = """
    DeepseekV4ForCausalLM Glm5NextForConditionalGeneration HYV4ForCausalLM Inkling2ForCausalLM
    Inkling2ForConditionalGeneration Llama4ForCausalLM MistralLarge4ForConditionalGeneration
"""

ALLOWED: dict[str, Allowed] = {
    **{name: Allowed(name, "packed") for name in _PACKED.split()},
    **{name: Allowed(name, "packed", experts="transformers") for name in _PACKED_THEIR_EXPERTS.split()},
    **{name: Allowed(name, "request") for name in _REQUEST.split()},
    **{name: Allowed(name, "request", experts="transformers") for name in _REQUEST_THEIR_EXPERTS.split()},
    "UnlimitedOcrForConditionalGeneration": Allowed(
        "UnlimitedOcrForConditionalGeneration", "request", resumes="replayed"
    ),
    "Qwen3OmniMoeForConditionalGeneration": Allowed(
        "Qwen3OmniMoeForConditionalGeneration",
        "packed",
        part=("Qwen3OmniMoeThinkerForConditionalGeneration", "thinker_config"),
    ),
}
