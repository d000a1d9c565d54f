"""The embedded model does what the README says, through our engine: sums it never saw, JSON, and an explanation."""

import json
import os
import random
from pathlib import Path

import pytest

from moesaic import LLM, SamplingParams
from tests.conftest import EMBEDDED
from tools.train_embedded.arithmetic import held_out_additions
from tools.train_embedded.structured import request

MOST_BYTES = 16 * 2**20
MOST_PARAMETERS = 7_000_000


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("moe-model", threads=os.cpu_count())


def answers(llm: LLM, questions: list[str], max_tokens: int) -> list[str]:
    """Greedy answers to single messages."""
    conversations = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    return [output.text.strip() for output in llm.chat(conversations, params, use_tqdm=False)]


def test_its_size(llm):
    files = [file for file in Path(EMBEDDED).iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    spec = llm.llm_engine.engine.executor.model.spec
    assert spec.num_parameters <= MOST_PARAMETERS
    assert len(spec.layers) >= 4
    assert all(layer.ffn.num_experts >= 16 and layer.ffn.router.top_k >= 2 for layer in spec.layers)


def test_adds_pairs_that_training_never_saw(llm):
    pairs = random.Random(5).sample(held_out_additions(), 200)
    got = answers(llm, [f"What is {a} + {b}?" for a, b in pairs], 8)
    right = sum(text == str(a + b) for text, (a, b) in zip(got, pairs, strict=True))
    assert right >= 0.95 * len(pairs), f"{right} of {len(pairs)}"


def test_writes_json_when_asked(llm):
    rng = random.Random(6)
    questions = [request(rng, held_out=True)[0] for _ in range(60)]
    valid = 0
    for text in answers(llm, questions, 400):
        try:
            json.loads(text)
        except ValueError:
            continue
        valid += 1
    assert valid >= 0.9 * len(questions), f"{valid} of {len(questions)}"


def test_explains_itself(llm):
    text = answers(llm, ["Explain MoE architecture"], 200)[0]
    assert "expert" in text.lower() and "router" in text.lower() and text.endswith(".")
