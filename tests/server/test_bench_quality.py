"""`python -m benchmarks.quality`, small: what it compares, and that a worse precision shows."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks.quality import held_out_text, main, relative_errors
from tools.train_embedded.data import is_held_out_pair


def test_float32_against_bfloat16() -> None:
    result = CliRunner().invoke(main, ["--count", "8", "--precision", "bfloat16", "--threads", "1"])
    assert result.exit_code == 0, result.output
    table, _, lines = result.stdout.partition('{"bench"')
    assert "bfloat16" in table
    figures = {(f["case"], f["metric"]): f for f in map(json.loads, ('{"bench"' + lines).splitlines())}
    exact = figures["moe-model float32", "perplexity all"]["value"]
    assert 1 < exact < 1.5
    assert figures["moe-model bfloat16", "perplexity all"]["baseline"] == exact
    assert 1e-4 < figures["moe-model bfloat16", "logits, error over all tokens"]["value"] < 0.2
    assert figures["moe-model float32", "additions, chat"]["value"] > 0.9


def test_the_text_is_held_out_and_always_the_same() -> None:
    texts = held_out_text(10)
    assert texts == held_out_text(10) != held_out_text(10, seed=1)
    for text in texts:
        if text.domain == "arithmetic":
            a, b = (int(word) for word in text.prompt.partition("What is ")[2].partition("?")[0].split(" + "))
            assert is_held_out_pair(a, b) and text.answer.startswith(str(a + b))


def test_a_shift_of_all_logits_is_no_error() -> None:
    exact = [torch.tensor([[1.0, 2.0, 3.0]])]
    assert max(relative_errors([exact[0] + 5], exact)) < 1e-7
    median, whole = relative_errors([torch.tensor([[1.0, 2.0, 4.0]])], exact)
    assert median == whole == pytest.approx((2 / 3 / 2) ** 0.5)


def test_one_token_of_many_does_not_move_the_median() -> None:
    exact = [torch.tensor([[1.0, -1.0]] * 5)]
    ours = [torch.tensor([[1.0, -1.0]] * 4 + [[-1.0, 1.0]])]
    median, whole = relative_errors(ours, exact)
    assert median == 0 and whole == pytest.approx((4 / 5) ** 0.5)
