"""The causal convolution in C++ against its oracle: in batches, in chunks, from slots and from none."""

import pytest
import torch
import torch.nn.functional as F

from moesaic.kernels import reference_recurrent as oracle
from moesaic.kernels.cpu import recurrent as cpu
from tests.kernels.stateful import NUM_SLOTS, STEPS, dirty, in_chunks, stateful_batch

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SHAPES = [(4, 8), (4, 300), (3, 517), (2, 5), (7, 33)]  # width, channels

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states(batch, width, channels):
    """Random states of the sequences that have been there, NaN everywhere else."""
    state = dirty(width - 1, channels)
    for s, slot in enumerate(batch.state_slots.tolist()):
        if batch.seq_lens_host[s] > batch.query_lens_host[s]:
            state[slot] = random(width - 1, channels, seed=10 + s)
    return state


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_oracle(step, shape, silu):
    batch = stateful_batch(*STEPS[step])
    width, channels = shape
    wide, weight = random(batch.num_tokens, channels + 5), random(width, channels, seed=1)
    x = wide[:, 2 : channels + 2]
    for bias in (None, random(channels, seed=2)):
        theirs, ours = states(batch, *shape), states(batch, *shape)
        expected = oracle.causal_conv(x, weight, bias, theirs, batch, silu)
        torch.testing.assert_close(cpu.causal_conv(x, weight, bias, ours, batch, silu), expected, **CLOSE)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_the_oracle_is_torchs_convolution():
    x, weight, bias = random(12, 6), random(4, 6, seed=1), random(6, seed=2)
    batch = stateful_batch([(0, 12)], [0])
    padded = F.pad(x.T, (3, 0))[None]
    expected = F.silu(F.conv1d(padded, weight.T[:, None], bias, groups=6))[0].T
    torch.testing.assert_close(oracle.causal_conv(x, weight, bias, dirty(3, 6), batch), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_and_neighbours_change_no_bit(shape):
    width, channels = shape
    x, weight = random(23, channels), random(width, channels, seed=1)

    def run(sizes):
        state = dirty(width - 1, channels)
        return in_chunks(lambda b, rows: cpu.causal_conv(x[rows], weight, None, state, b), 23, sizes), state[3]

    whole, kept = run([23])
    for sizes in ([1], [5, 2, 1], [16, 7]):
        chunked, state = run(sizes)
        assert torch.equal(chunked, whole) and torch.equal(state, kept)
    together = stateful_batch([(0, 4), (0, 23), (0, 2)], [1, 3, 5])
    others = torch.cat([random(4, channels, seed=3), x, random(2, channels, seed=4)])
    state = dirty(width - 1, channels)
    assert torch.equal(cpu.causal_conv(others, weight, None, state, together)[4:27], whole)
    assert torch.equal(state[3], kept)
    untouched = [slot for slot in range(NUM_SLOTS) if slot not in (1, 3, 5)]
    assert state[untouched].isnan().all()


def test_threads_change_no_bit():
    batch = stateful_batch([(0, 40), (0, 9)], [0, 1])
    x, weight = random(49, 900), random(4, 900, seed=1)
    alone = cpu.causal_conv(x, weight, None, dirty(3, 900), batch)
    torch.set_num_threads(4)
    assert torch.equal(cpu.causal_conv(x, weight, None, dirty(3, 900), batch), alone)


def test_what_does_not_fit_is_refused():
    batch = stateful_batch([(0, 2)], [0])
    x, weight = random(2, 8), random(4, 8)
    for arguments in (
        (random(2, 7), weight, None, dirty(3, 8), batch),
        (x, weight, None, dirty(4, 8), batch),
        (x, random(1, 8), None, dirty(0, 8), batch),
        (x, weight, random(7), dirty(3, 8), batch),
        (random(3, 8), weight, None, dirty(3, 8), batch),
        (x.double(), weight, None, dirty(3, 8), batch),
        (x, weight, None, dirty(3, 8), stateful_batch([(0, 1)], [0])),
    ):
        with pytest.raises(ValueError, match="expected|for|needs"):
            cpu.causal_conv(*arguments)
