"""Recording and replaying kernels' calls: the same bits as the plain way, for any number of rows."""

import itertools

import pytest
import torch

from moesaic.kernels.cpu.calls import Kernel, seam
from moesaic.kernels.cpu.norm import add_rms_norm, embed, gather_rows
from moesaic.kernels.cpu.replay import Buffers, NotReplayable, record
from moesaic.kernels.cpu.router import route

CAPACITY, SIZE = 13, 24


class Chain:
    """Norms over a residual stream, then a router; inputs in a buffer that stays."""

    def __init__(self):
        torch.manual_seed(0)
        self.ids = torch.zeros(CAPACITY, dtype=torch.int64)
        self.table, self.weights = torch.randn(50, SIZE), torch.randn(5, SIZE)
        self.counts = torch.zeros(SIZE, dtype=torch.int64)

    def run(self, rows):
        hidden, delta = embed(self.ids[:rows], self.table, 2.0), None
        for weight in self.weights:
            hidden, delta = add_rms_norm(hidden, delta, 0.5, weight, 1e-6)
            seam()
        return route(delta.view(-1, SIZE), 4, counts=self.counts)[1]


@pytest.mark.usefixtures("isa")
def test_a_replay_gives_the_bits_of_the_plain_way():
    chain = Chain()
    program = record(lambda: chain.run(CAPACITY), CAPACITY)
    assert program.names == ["embed", *["rms_norm"] * 5, "route"] and program.cuts == [2, 3, 4, 5, 6]
    assert not chain.counts.any(), "recording computes nothing"
    for rows in (1, 2, CAPACITY, 7, 1, 0):
        chain.ids.copy_(torch.randint(0, 50, (CAPACITY,)))
        plain, counts = chain.run(rows), chain.counts.clone()
        chain.counts.zero_()
        assert torch.equal(program.run(rows), plain) and torch.equal(chain.counts, counts)
        chain.counts.zero_()


def test_parts_of_a_replay_make_the_whole():
    chain = Chain()
    program = record(lambda: chain.run(CAPACITY), CAPACITY)
    expected = program.run(5).clone()
    program.output.zero_()
    bounds = [0, *program.cuts, len(program.names)]
    for first, last in itertools.pairwise(bounds):
        program.run_part(5, first, last)
    assert torch.equal(program.output[:5], expected)


def test_what_torch_computes_stops_a_recording():
    chain = Chain()
    with pytest.raises(NotReplayable, match=r"aten.mul.*is computed by torch"):
        record(lambda: chain.run(CAPACITY) * 2, CAPACITY)
    assert Kernel.recorder is None
    assert chain.run(2).shape == (2, 4)


def test_other_numbers_of_rows_stop_a_recording():
    x = torch.randn(CAPACITY, SIZE)
    with pytest.raises(NotReplayable, match="gather_rows: rows is 3 in a batch of 13 rows"):
        record(lambda: gather_rows(x, torch.tensor([1, 2, 3])), CAPACITY)


def test_buffers_are_used_again_when_nothing_looks_at_them():
    buffers = Buffers()
    first = buffers.empty((4, 8), torch.float32)
    view, address = first.view(-1)[3:], first.data_ptr()
    del first
    second = buffers.empty((4, 8), torch.float32)
    assert second.data_ptr() != address, "a view is still there"
    del view
    assert buffers.empty((2,), torch.int64).data_ptr() == address
