"""Scans over states in C++ against their oracle: in batches, in chunks, from slots and from none."""

import pytest
import torch

from moesaic.kernels import reference_recurrent as oracle
from moesaic.kernels.cpu import recurrent as cpu
from moesaic.kernels.state_cache import in_blocks, matrix_state
from tests.kernels.stateful import NUM_SLOTS, STEPS, dirty, in_chunks, stateful_batch

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(num_tokens, count, size, seed):
    """`[T, count, size]`, columns of a wider tensor, heads apart."""
    return random(num_tokens, count, size + 3, seed=seed)[..., 1 : size + 1]


def assert_close(ours, theirs):
    """Close by the measure of the largest."""
    largest = theirs.nan_to_num().abs().max().item() if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-6 * largest, equal_nan=True)


class Scan:
    """Random inputs for one operation: those of a step's tokens come first, `weights` stay.

    Attributes:
        state: the shape of a slot.
    """

    def __init__(self, op, inputs, weights, state, **options):
        self.op, self.inputs, self.weights, self.state, self.options = op, inputs, weights, state, options

    def run(self, module, state, batch, rows=slice(None)):
        inputs = [x[rows] for x in self.inputs]
        return getattr(module, self.op)(*inputs, *self.weights, state, batch, **self.options)


def delta(num_tokens, heads=4, groups=2, keys=16, values=40, channels=1):
    inputs = [wide(num_tokens, n, size, i) for i, (n, size) in enumerate([(groups, keys)] * 2 + [(heads, values)])]
    inputs += [wide(num_tokens, heads, size, 5 + size) for size in (channels, 1)]
    weights = [random(heads, seed=7).exp(), random(heads * channels, seed=8)]
    return Scan("gated_delta", inputs, weights, matrix_state(heads, keys, values))


def ssd(num_tokens, heads=4, groups=2, keys=16, values=40, limits=(0.0, float("inf"))):
    inputs = [wide(num_tokens, heads, values, 0), *(wide(num_tokens, groups, keys, i) for i in (1, 2))]
    inputs.append(wide(num_tokens, heads, 1, 3))
    weights = [random(heads, seed=4).exp(), random(heads, seed=5), random(heads, seed=6)]
    return Scan("ssd_scan", inputs, weights, matrix_state(heads, keys, values), limits=limits)


def linear(num_tokens, heads=4, groups=4, keys=16, values=40):
    inputs = [wide(num_tokens, n, size, i) for i, (n, size) in enumerate([(groups, keys)] * 2 + [(heads, values)])]
    return Scan("linear_attention", inputs, [torch.rand(heads) * 0.5 + 0.5], matrix_state(heads, keys, values))


def selective(num_tokens, channels=150, size=6):
    x, gate = (wide(num_tokens, 1, channels, i)[:, 0] for i in (0, 1))
    inputs = [x, random(num_tokens, channels, seed=2), *(random(num_tokens, size, seed=i) for i in (3, 4)), gate]
    weights = [in_blocks(random(size, channels, seed=5).exp()), random(channels, seed=6), random(channels, seed=7)]
    return Scan("selective_scan", inputs, weights, matrix_state(1, size, channels))


SCANS = {
    "delta": delta,
    "delta, one head": lambda n: delta(n, 1, 1, 5, 3),
    "delta, whole blocks": lambda n: delta(n, 2, 1, 128, 64),
    "delta by channel": lambda n: delta(n, channels=16),
    "delta by channel, many": lambda n: delta(n, 2, 2, 128, 128, 128),
    "ssd": ssd,
    "ssd, one group": lambda n: ssd(n, 6, 1, 256, 64),
    "ssd, limits": lambda n: ssd(n, limits=(0.3, 1.0)),
    "linear": linear,
    "linear, fewer keys": lambda n: linear(n, 4, 1, 33, 32),
    "selective": selective,
    "selective, few": lambda n: selective(n, 5, 16),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scan", SCANS)
def test_oracle(scan, step):
    batch = stateful_batch(*STEPS[step])
    case = SCANS[scan](batch.num_tokens)
    theirs, ours = states(case, batch), states(case, batch)
    expected = case.run(oracle, theirs, batch)
    assert_close(case.run(cpu, ours, batch), expected)
    assert_close(ours, theirs)


def states(case, batch):
    """Random states of the sequences that have been there, NaN everywhere else."""
    state = dirty(*case.state)
    values = case.inputs[0 if case.op in ("ssd_scan", "selective_scan") else 2].shape[-1]
    for s, slot in enumerate(batch.state_slots.tolist()):
        if batch.seq_lens_host[s] == batch.query_lens_host[s]:
            continue
        state[slot] = random(*case.state, seed=10 + s)
        if len(case.state) == 4:  # what pads a block is zero
            state[slot, :, -1, :, values % 32 or 32 :] = 0
    return state


@pytest.mark.parametrize("scan", SCANS)
def test_chunks_and_neighbours_change_no_bit(scan):
    case = SCANS[scan](31)

    def run(sizes):
        state = dirty(*case.state)
        return in_chunks(lambda b, rows: case.run(cpu, state, b, rows), 31, sizes), state[3]

    whole, kept = run([31])
    assert whole.isfinite().all() and whole.std() > 1e-3
    for sizes in ([1], [5, 2, 1], [16, 7]):
        chunked, state = run(sizes)
        assert torch.equal(chunked, whole) and torch.equal(state, kept)
    state = dirty(*case.state)
    together = stateful_batch([(0, 4), (0, 25), (0, 2)], [1, 3, 5])
    assert torch.equal(case.run(cpu, state, together)[:4], whole[:4])
    alone = dirty(*case.state)
    expected = case.run(cpu, alone, stateful_batch([(0, 25)], [0]), slice(4, 29))
    assert torch.equal(case.run(cpu, state, together)[4:29], expected) and torch.equal(state[3], alone[0])
    assert state[[slot for slot in range(NUM_SLOTS) if slot not in (1, 3, 5)]].isnan().all()


@pytest.mark.parametrize("scan", SCANS)
def test_threads_change_no_bit(scan):
    batch = stateful_batch([(0, 40), (0, 9)], [0, 1])
    case = SCANS[scan](49)
    alone = case.run(cpu, dirty(*case.state), batch)
    torch.set_num_threads(4)
    assert torch.equal(case.run(cpu, dirty(*case.state), batch), alone)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("act", ["silu", "sigmoid"])
@pytest.mark.parametrize("sizes", [(24, 24), (24, 8), (130, 65)], ids=str)
def test_gated_norm(sizes, act, gate_first):
    size, group = sizes
    for rows in (0, 1, 7):
        x, gate = random(rows, size), random(rows, size + 9, seed=1)[:, 4 : size + 4]
        for weight in (random(size, seed=2), random(group, seed=2)):
            options = (gate, weight, 1e-5, group, act, gate_first)
            ours = cpu.gated_norm(x, *options)
            assert_close(ours, oracle.gated_norm(x, *options))
            for row in range(rows):
                one = slice(row, row + 1)
                assert torch.equal(cpu.gated_norm(x[one], gate[one], *options[1:]), ours[one])


@pytest.mark.parametrize("scan", SCANS)
def test_what_does_not_fit_is_refused(scan):
    batch, case = stateful_batch([(0, 5)], [0]), SCANS[scan](5)
    for i in range(len(case.inputs)):
        wrong = SCANS[scan](5)
        wrong.inputs[i] = wrong.inputs[i][:4]
        with pytest.raises(ValueError, match=r"expected|for"):
            wrong.run(cpu, dirty(*case.state), batch)
    for i in range(len(case.weights)):
        wrong = SCANS[scan](5)
        wrong.weights[i] = wrong.weights[i][..., :-1] if wrong.weights[i].shape[-1] > 1 else random(2)
        with pytest.raises(ValueError, match=r"expected|for"):
            wrong.run(cpu, dirty(*case.state), batch)
    with pytest.raises(ValueError, match=r"expected|states"):
        case.run(cpu, dirty(*case.state[:-1], case.state[-1] + 1), batch)
