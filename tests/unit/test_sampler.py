"""The sampler: each filter against a plain definition, draws against their distribution, rows independent."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.core.sampling_params import SamplingParams
from moesaic.kernels import reference_sampling
from moesaic.kernels.reference_sampling import uniform_draw
from moesaic.worker import sampler
from moesaic.worker.sampler import SamplingRow, logprob_rows

VOCAB = 50


def row(prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0, **kwargs) -> SamplingRow:
    prompt, output = prompt or [0], output or []
    stop = kwargs.pop("stops", [])
    return SamplingRow(SamplingParams(**kwargs), seed, len(prompt), np.array(prompt + output, dtype=np.int64), stop)


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int | None]:
    """The sampler on a tensor; the oracle comes to the same tokens."""
    wanted = reference_sampling.sample(logits.clone().numpy(), rows)
    tokens = sampler.sample(logits.numpy(), rows)
    assert tokens == wanted
    return tokens


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def support(logits: torch.Tensor, draws: int = 400, **kwargs) -> set[int]:
    """Tokens that `draws` seeds choose from one row of logits."""
    rows = [row(seed=s, **kwargs) for s in range(draws)]
    return set(sample(logits.expand(draws, -1).clone(), rows))


def test_greedy_takes_the_likeliest():
    logits = logits_of(0, 8)
    assert sample(logits.clone(), [row(temperature=0)] * 8) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_top_k_keeps_k(k):
    logits = logits_of(1) / 10
    assert support(logits, top_k=k) == set(logits[0].topk(k).indices.tolist())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = logits_of(2) / 3
    probabilities = logits[0].softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    nucleus, mass = [], 0.0
    for token in order:
        nucleus.append(token)
        mass += probabilities[token].item()
        if mass >= p:
            break
    drawn = support(logits, draws=3000, top_p=p)
    assert drawn <= set(nucleus)
    assert {t for t in nucleus if probabilities[t] > 0.01} <= drawn


def test_top_p_sorts_all_when_the_candidates_do_not_reach(monkeypatch):
    logits = logits_of(3) / 3
    whole = support(logits, top_p=0.9)
    monkeypatch.setattr(reference_sampling, "NUCLEUS_CANDIDATES", (1, 2))
    assert support(logits, top_p=0.9) == whole


def test_min_p_drops_the_unlikely():
    logits = logits_of(4) / 3
    probabilities = logits[0].softmax(-1)
    kept = set((probabilities >= 0.3 * probabilities.max()).nonzero()[:, 0].tolist())
    assert support(logits, draws=2000, min_p=0.3) == kept


def test_draws_follow_the_distribution():
    """Chi-squared over 20,000 draws: above its 99.9 % point once in a thousand seeds, and the seeds are fixed."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    draws = 20_000
    tokens = sample(logits.expand(draws, -1).clone(), [row(seed=s, temperature=0.7) for s in range(draws)])
    expected = (logits[0] / 0.7).softmax(-1) * draws
    counts = torch.bincount(torch.tensor(tokens), minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


def test_uniform_draws_are_uniform_in_seed_and_position():
    for values in ([uniform_draw(s, 0) for s in range(10_000)], [uniform_draw(7, p) for p in range(10_000)]):
        counts, _ = np.histogram(values, bins=20, range=(0, 1))
        assert ((counts - 500) ** 2 / 500).sum() < 43.8  # 99.9 % point, 19 degrees of freedom
        assert all(0 <= value < 1 for value in values)


params_strategy = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 100]),
        "top_p": st.sampled_from([0.2, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(params_strategy, min_size=1, max_size=6), st.integers(0, 99))
def test_a_row_is_drawn_alike_alone_and_in_any_company(all_params, seed):
    logits = logits_of(seed, len(all_params))
    rows = [row(prompt=[1, 2], output=[3, 3, i], **p) for i, p in enumerate(all_params)]
    together = sample(logits.clone(), rows)
    alone = [sample(logits[i : i + 1].clone(), [r])[0] for i, r in enumerate(rows)]
    assert together == alone


def test_penalties_match_their_formulas():
    logits = logits_of(5)
    expected = logits[0].clone()
    for token in {4, 5, 6}:
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    expected[5] -= 0.5 + 0.25 * 2
    expected[6] -= 0.5 + 0.25 * 1
    reference_sampling.adjust(
        logits[0].numpy(),
        row(prompt=[4], output=[5, 6, 5], repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25),
    )
    torch.testing.assert_close(logits[0], expected)


def test_logit_bias_can_force_and_forbid():
    logits = logits_of(6)
    best = int(logits.argmax())
    assert sample(logits.clone(), [row(temperature=0, logit_bias={best: -100.0})]) != [best]
    assert sample(logits.clone(), [row(temperature=0, logit_bias={17: 100.0})]) == [17]


def test_stop_tokens_cannot_be_drawn_before_min_tokens():
    logits = logits_of(7)
    best = int(logits.argmax())
    early = row(temperature=0, min_tokens=3, output=[1, 2], stops=[best])
    late = row(temperature=0, min_tokens=3, output=[1, 2, 3], stops=[best])
    assert sample(logits.clone(), [early]) != [best]
    assert sample(logits.clone(), [late]) == [best]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad, temperature):
    logits = logits_of(8, 3)
    logits[1, 4] = bad
    tokens = sample(logits, [row(temperature=temperature)] * 3)
    assert tokens[1] is None and None not in (tokens[0], tokens[2])


def test_logprobs_are_those_of_the_raw_logits():
    logits = logits_of(9, 2)
    reference = logits.log_softmax(-1)
    rows = logprob_rows(logits, [3, int(logits[1].argmax())], [2, 0])
    best = reference[0].topk(2)
    assert rows[0].token_ids[0] == 3 and rows[0].logprobs[0] == pytest.approx(reference[0, 3].item())
    assert rows[0].ranks[0] == int((reference[0] > reference[0, 3]).sum()) + 1
    others = [t for t in best.indices.tolist() if t != 3]
    assert rows[0].token_ids[1:] == others
    assert rows[1].ranks == [1] and len(rows[1].token_ids) == 1
