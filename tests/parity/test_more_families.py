"""Every other family against transformers, on tiny random models: see test_families.py."""

import pytest

from tests.families import VARIANTS
from tests.parity.driver import load
from tests.parity.greedy import check_greedy, recomputed
from tests.parity.test_families import compare, random_streams, reference_logits
from tests.tiny_models import MORE_FAMILIES, tiny_reference

CASES = {**{family: (family, {}) for family in MORE_FAMILIES}, **VARIANTS}


GREEDY_SAMPLE = ("deepseek_v3", "gpt_oss", "jetmoe", "lfm2_moe", "llama4_text", "nemotron_h", "phimoe", "qwen3_next")
GREEDY = [pytest.param(f, marks=() if f in GREEDY_SAMPLE else pytest.mark.parity_full) for f in MORE_FAMILIES]


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    check(case, tmp_path, "auto")


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_logits_of_the_reference_backend(family, tmp_path):
    check(family, tmp_path, "reference")


@pytest.mark.parametrize("family", GREEDY)
def test_greedy_tokens(family, tmp_path):
    reference = tiny_reference(family, seed=3)
    reference.save_pretrained(tmp_path)
    check_greedy(recomputed(reference), tmp_path, max_num_batched_tokens=16)


def check(case, tmp_path, backend):
    """The model's logits in batches and in chunks are those of transformers."""
    family, options = CASES[case]
    reference = tiny_reference(family, **options)
    reference.save_pretrained(tmp_path)
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(tmp_path, backend=backend)
    compare(case, reference, model, streams, expected)
