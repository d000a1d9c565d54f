"""What mixes tokens, and what scores experts, in architectures that only transformers' code computes; for people.

`moesaic models` and docs/models.md show it. Of what has a spec of ours, the spec says it.
"""

_LATENT = "latent attention, sparse indexer"

# architecture -> attention, router
KINDS: dict[str, tuple[str, str]] = {
    "AXK2ForCausalLM": (_LATENT, "sigmoid"),
    "BailingHybridForCausalLM": ("latent attention, delta rule by channel", "sigmoid"),
    "DeepseekOcr2ForConditionalGeneration": ("multi-head attention", "softmax"),
    "DeepseekV4ForCausalLM": ("compressed attention, sparse indexer", "configured, by hash in some layers"),
    "Dots3NoteForCausalLM": (_LATENT, "sigmoid"),
    "Dots3NoteForConditionalGeneration": (_LATENT, "sigmoid"),
    "Glm5NextForConditionalGeneration": (f"{_LATENT}, delta rule by channel", "sigmoid"),
    "HYV4ForCausalLM": (f"{_LATENT}, sinks", "sigmoid"),
    "Inkling2ForCausalLM": ("grouped-query attention, short convolutions", "configured"),
    "Inkling2ForConditionalGeneration": ("grouped-query attention, short convolutions", "configured"),
    "InklingForCausalLM": ("grouped-query attention, short convolutions", "sigmoid"),
    "MiniMaxM3SparseForConditionalGeneration": ("grouped-query attention, block indexer", "sigmoid"),
    "MiniMaxM3VLForCausalLM": ("grouped-query attention, block indexer", "sigmoid"),
    "MistralLarge4ForConditionalGeneration": (_LATENT, "softmax"),
    "MuseSparkForConditionalGeneration": ("grouped-query attention", "configured"),
    "Qwen3OmniMoeThinkerForConditionalGeneration": ("grouped-query attention", "softmax"),
    "Qwen4ExpForCausalLM": ("gated delta, grouped-query attention, sparse indexer", "softmax"),
    "Qwen4ExpForConditionalGeneration": ("gated delta, grouped-query attention, sparse indexer", "softmax"),
    "UnlimitedOcrForConditionalGeneration": ("multi-head attention", "softmax"),
    "ZayaForCausalLM": ("compressed convolutional attention", "softmax of a network"),
}
