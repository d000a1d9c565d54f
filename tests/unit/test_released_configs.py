"""The configs of released models are read whole, and the specs made of them have as many parameters as was published.

`tests/released` holds what lies beside the released weights as config.json, less what only training and generation
read.
"""

import json
from pathlib import Path

import pytest

from moesaic.models.load import spec_of

FOLDER = Path(__file__).parent.parent / "released"

# Billions of parameters: all, and those that a token meets. Of multimodal models, the text's.
PUBLISHED = {
    "Mixtral-8x7B": (46.7, 12.9),
    "Qwen3-30B-A3B": (30.5, 3.3),
    "OLMoE-1B-7B": (6.92, 1.28),
    "Qwen1.5-MoE-A2.7B": (14.3, 2.7),
    "gpt-oss-20b": (20.9, 4.18),
    "GLM-4.5-Air": (106.9, 12.7),
    "MiniMax-M2": (228.7, 10.9),
    "dots.llm1": (142.8, 14.1),
    "Hunyuan-A13B": (80.4, 13.0),
    "ERNIE-4.5-21B-A3B": (21.8, 3.0),
    "Llama-3.1-8B": (8.03, 8.03),
    "Mistral-7B": (7.24, 7.24),
    "Qwen3-8B": (8.19, 8.19),
    "gemma-2-9b": (9.24, 9.24),
    "opt-6.7b": (6.66, 6.66),
    "granite-3.1-3b-a800m": (3.3, 0.8),
    "Phi-3.5-MoE-instruct": (41.9, 6.6),
    "dbrx-instruct": (131.6, 36.5),
    "Qwen3-Next-80B-A3B": (79.7, 3.9),
    "FlexOlmo-7x7B": (33.3, 33.3),
    "Llama-4-Scout": (107.8, 17.2),
    "LFM2-8B-A1B": (8.3, 1.5),
    "DeepSeek-V2-Lite": (15.7, 2.66),
    "DeepSeek-V3": (671.0, 37.6),
    "DeepSeek-V3.2": (671.9, 37.6),
    "LongCat-Flash-Chat": (560.7, 28.0),
    "Kimi-K2": (1026.0, 32.9),
    "GLM-4.7-Flash": (29.9, 3.6),
    "Nemotron-3-Nano-30B-A3B": (31.6, 3.5),
    "Jamba-v0.1": (51.6, 12.1),
    "granite-4.0-h-tiny": (6.9, 1.4),  # published as 7 and 1
    "Kimi-Linear-48B-A3B": (49.1, 3.3),
    "Qwen3-VL-30B-A3B": (30.5, 3.3),
    "GLM-4.5V": (106.9, 12.7),
}


def test_every_config_is_looked_at():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_config_counts_what_was_published(name):
    spec = spec_of(json.loads((FOLDER / f"{name}.json").read_text()))[1]
    total, active = PUBLISHED[name]
    counted = spec.num_parameters / 1e9, spec.num_active_parameters / 1e9
    # what a token meets is often published rounded, and without the embeddings
    assert counted == (pytest.approx(total, rel=0.02), pytest.approx(active, rel=0.12))
