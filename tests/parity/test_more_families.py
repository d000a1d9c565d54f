"""Every other family against transformers, on tiny random models: see test_families.py."""

import pytest

from tests.parity.driver import Driver, load, relative_difference
from tests.parity.test_families import CHUNKS, TOLERANCE, random_streams, reference_logits
from tests.tiny_models import MORE_FAMILIES, tiny_reference

# family, options of its config
VARIANTS = {
    "cohere2_moe softmax, summed": (
        "cohere2_moe",
        {"expert_selection_fn": "softmax", "shared_expert_combination_strategy": "sum"},
    ),
    "cohere2_moe no shared experts": ("cohere2_moe", {"num_shared_experts": 0}),
    "cohere2_moe rms norm": ("cohere2_moe", {"rms_norm_eps": 1e-5}),
    "dots1 not renormalised": ("dots1", {"norm_topk_prob": False}),
    "dots1 groups": ("dots1", {"n_group": 2, "topk_group": 1, "norm_topk_prob": True}),
    "ernie4_5_moe biases": ("ernie4_5_moe", {"use_bias": True}),
    "ernie4_5_moe interval": ("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_interval": 2}),
    "ernie4_5_moe no shared experts": ("ernie4_5_moe", {"moe_num_shared_experts": 0}),
    "exaone_moe groups": ("exaone_moe", {"n_group": 4, "topk_group": 2}),
    "flex_olmo renormalised": ("flex_olmo", {"norm_topk_prob": True}),
    "gemma2 no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "glm4_moe no qk norm": ("glm4_moe", {"use_qk_norm": False, "attention_bias": True}),
    "glm4_moe dense layers": ("glm4_moe", {"first_k_dense_replace": 2}),
    "granitemoeshared no shared expert": ("granitemoeshared", {"shared_intermediate_size": 0}),
    "hunyuan_v1_moe biases": ("hunyuan_v1_moe", {"attention_bias": True}),
    "mistral no window": ("mistral", {"sliding_window": None}),
    "opt gelu, no biases": ("opt", {"activation_function": "gelu", "enable_bias": False}),
    "qwen2_moe no biases": ("qwen2_moe", {"qkv_bias": False}),
    "qwen2_moe window": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 5}),
    "qwen2_moe dense layers": ("qwen2_moe", {"mlp_only_layers": [1], "norm_topk_prob": True}),
    "qwen3 window": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
}
CASES = {**{family: (family, {}) for family in MORE_FAMILIES}, **VARIANTS}


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    check(case, tmp_path, "auto")


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_logits_of_the_reference_backend(family, tmp_path):
    check(family, tmp_path, "reference")


def check(case, tmp_path, backend):
    """The model's logits in batches and in chunks are those of transformers."""
    family, options = CASES[case]
    reference = tiny_reference(family, **options)
    reference.save_pretrained(tmp_path)
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(tmp_path, backend=backend)
    for name, chunks in CHUNKS.items():
        logits = Driver(model).run(streams, chunks)
        worst = max(relative_difference(logits[i], expected[i]) for i in streams)
        assert worst < TOLERANCE, f"{case}, {name}: {worst:.2e}"
