"""C++ sampling: the oracle's tokens, every one of them; and log-probabilities."""

import numpy as np
import pytest
import torch

from moesaic.core.sampling_params import SamplingParams
from moesaic.kernels import reference_sampling as oracle
from moesaic.kernels.cpu import sampling as cpu
from moesaic.kernels.reference_sampling import SamplingRow

INF, NAN = float("inf"), float("nan")


def draw(rows: list[SamplingRow], logits: torch.Tensor) -> list[int | None]:
    """Both samplers on copies of the logits: they agree, in tokens and in what they leave of the logits."""
    table = cpu.ParamsTable(len(rows))
    for i, row in enumerate(rows):
        table.set(i, row.params, row.seed, row.token_ids, row.prompt_len, row.stop_token_ids)
    mine, theirs = logits.clone(), logits.clone()
    tokens = cpu.sample(mine, table, range(len(rows)), [len(row.token_ids) for row in rows])
    assert tokens == oracle.sample(theirs.numpy(), rows)
    assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())
    return tokens


def random_row(rng: np.random.Generator, vocab: int) -> SamplingRow:
    def maybe(value, default):
        return value if rng.random() < 0.4 else default

    prompt, output = rng.integers(0, vocab, rng.integers(1, 9)), rng.integers(0, vocab, rng.integers(0, 9))
    params = SamplingParams(
        temperature=maybe(float(rng.choice([0.0, 1e-4, 0.3, 0.8, 2.0, 1e20])), 1.0),
        top_k=int(maybe(rng.choice([-1, 1, 2, 40, vocab - 1, vocab, vocab + 5, 2**62]), 0)),
        top_p=float(maybe(rng.choice([1e-9, 0.1, 0.5, 0.9, 0.999999]), 1.0)),
        min_p=float(maybe(rng.choice([1e-9, 0.01, 0.1, 1.0]), 0.0)),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        repetition_penalty=maybe(float(rng.uniform(0.5, 2)), 1.0),
        min_tokens=int(maybe(rng.integers(1, 9), 0)),
        logit_bias=maybe({int(i): float(rng.uniform(-50, 50)) for i in rng.integers(0, vocab, 3)}, {}),
    )
    stops = [int(i) for i in set(rng.integers(0, vocab, rng.integers(0, 3)).tolist())]
    tokens = np.concatenate([prompt, output]).astype(np.int64)
    return SamplingRow(params, int(rng.integers(-(2**63), 2**63)), len(prompt), tokens, stops)


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> torch.Tensor:
    """Of every kind: flat, peaked, with many equals, with forbidden tokens, rising."""
    logits = torch.from_numpy(rng.standard_normal((rows, vocab)).astype(np.float32))
    for i in range(rows):
        logits[i] *= float(rng.choice([0.0, 0.1, 1.0, 3.0, 20.0]))
        kind = rng.integers(5)
        if kind == 0:
            logits[i] = logits[i].round()
        elif kind == 1:
            logits[i, torch.from_numpy(rng.random(vocab) < 0.7)] = -INF
            logits[i, int(rng.integers(vocab))] = 1.0
        elif kind == 2:
            logits[i] = logits[i].sort().values
    return logits


@pytest.mark.parametrize("vocab, rows", [(1, 20), (2, 50), (7, 100), (50, 800), (1000, 800), (1536, 800), (5001, 300)])
def test_every_token_is_the_oracles(isa, vocab, rows):
    rng = np.random.default_rng(vocab)
    draw([random_row(rng, vocab) for _ in range(rows)], random_logits(rng, rows, vocab))


@pytest.mark.parametrize("vocab", [32_000, 152_064])
def test_large_vocabularies(isa, vocab):
    rng = np.random.default_rng(1)
    kinds = [{}, {"top_k": 50}, {"top_k": 20_000}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}, {"min_p": 0.05}]
    for options in kinds:
        rows = [SamplingRow(SamplingParams(**options), s, 1, np.array([3]), []) for s in range(5)]
        draw(rows, random_logits(rng, 5, vocab))


def test_equal_weights_from_end_to_end(isa):
    """Draws of a flat row go through every token: the inverse of the distribution, no token left out."""
    tokens = draw([SamplingRow(SamplingParams(), s, 1, np.array([0]), []) for s in range(4000)], torch.zeros(4000, 40))
    assert set(tokens) == set(range(40))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_are_none(isa, temperature):
    logits = torch.zeros(6, 33)
    logits[0, 32], logits[1, 0], logits[2, 3], logits[3], logits[4, 5] = NAN, INF, -INF, -INF, 2.0
    logits[5] = NAN
    params = SamplingParams(temperature=temperature, top_k=1)
    tokens = draw([SamplingRow(params, 0, 1, np.array([0]), []) for _ in range(6)], logits)
    assert [token is None for token in tokens] == [True, True, False, True, False, True] and tokens[4] == 5


def test_a_row_is_drawn_alike_in_any_company(isa):
    rng = np.random.default_rng(5)
    rows, logits = [random_row(rng, 3000) for _ in range(64)], random_logits(rng, 64, 3000)
    together = draw(rows, logits)
    assert together == [draw([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]


def test_slots_and_lengths_are_read_each_step(isa):
    tokens = np.zeros((4, 10), dtype=np.int64)
    table = cpu.ParamsTable(4)
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    for slot in (1, 3):
        table.set(slot, params, 0, tokens[slot], 2, [])
    tokens[3, :4] = [0, 0, 5, 6]
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 1.2, 1.1]])
    assert cpu.sample(logits.clone(), table, [3], [2]) == [5]
    assert cpu.sample(logits.clone(), table, [3], [3]) == [6]
    assert cpu.sample(logits.repeat(2, 1), table, [3, 1], [4, 2]) == [4, 5]
    with pytest.raises(ValueError, match="slots"):
        cpu.sample(logits.clone(), table, [4], [2])
    with pytest.raises(ValueError, match="rows of logits"):
        cpu.sample(logits.clone(), table, [1, 3], [2, 2])


def test_ids_outside_the_vocabulary_are_left_alone(isa):
    """The engine refuses them; the kernel does not write where they point."""
    table = cpu.ParamsTable(1)
    params = SamplingParams(temperature=0.0, logit_bias={10**9: 5.0}, min_tokens=2, repetition_penalty=1.1)
    table.set(0, params, 0, np.array([0, 10**12, -4], dtype=np.int64), 2, [10**10])
    assert cpu.sample(torch.tensor([[1.0, 3.0]]), table, [0], [3]) == [1]


@pytest.mark.parametrize("rows, vocab", [(1, 1), (3, 7), (20, 1000), (4, 33_000)])
def test_logprobs(isa, rows, vocab):
    rng = np.random.default_rng(vocab)
    logits = random_logits(rng, rows, vocab)
    tokens = [int(i) for i in rng.integers(0, vocab, rows)]
    counts = [int(i) for i in rng.integers(0, 30, rows)]
    for mine, wanted in zip(
        cpu.logprob_rows(logits, tokens, counts), oracle.logprob_rows(logits, tokens, counts), strict=True
    ):
        assert (mine.token_ids, mine.ranks) == (wanted.token_ids, wanted.ranks)
        assert mine.logprobs == pytest.approx(wanted.logprobs, rel=1e-5, abs=2e-6)


def test_logprobs_of_what_is_not_finite_come_back(isa):
    logits = torch.full((2, 40), NAN)
    logits[1, ::2] = -INF
    for row in cpu.logprob_rows(logits, [1, 2], [5, 5]):
        assert row.token_ids[0] in (1, 2) and len(row.token_ids) <= 6
