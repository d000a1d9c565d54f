"""Every other family against transformers, on tiny random models: see test_families.py."""

import json

import pytest

from moesaic.models.registry import ModelRegistry
from tests.families import VARIANTS
from tests.parity.driver import load
from tests.parity.greedy import check_greedy, recomputed
from tests.parity.test_families import compare, random_streams, reference_logits
from tests.tiny_models import FAMILIES, MORE_FAMILIES, tiny_class, tiny_config, tiny_reference

CASES = {**{family: (family, {}) for family in MORE_FAMILIES}, **VARIANTS}
OTHER_NAMES = {"KimiK2ForCausalLM": "deepseek_v3", "PhiMoEForCausalLM": "phimoe"}  # that transformers has no class of
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


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_logits_under_another_name(name, tmp_path):
    check(OTHER_NAMES[name], tmp_path, "auto", name)


def test_every_native_architecture_is_compared():
    compared = {tiny_class(tiny_config(family), family).__name__ for family in (*FAMILIES, *MORE_FAMILIES)}
    assert compared | OTHER_NAMES.keys() == set(ModelRegistry.get_supported_archs())


def check(case, tmp_path, backend, name=None):
    """The model's logits in batches and in chunks are those of transformers; `name` is what its config calls it."""
    family, options = CASES[case]
    reference = tiny_reference(family, **options)
    reference.save_pretrained(tmp_path)
    if name is not None:
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": [name]}))
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(tmp_path, backend=backend)
    compare(case, reference, model, streams, expected, name)
