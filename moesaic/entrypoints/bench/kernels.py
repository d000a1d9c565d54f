"""The kernels that read weights, beside the machine's limits: a layer of experts of OLMoE's shape, a linear layer; and
those that bring sequences' states forward (`states`).

A call's time is set against the longer of two floors, both measured in the same run: the bytes of the weights that it
touches over the bandwidth of a plain read, and its operations over the peak of torch's own product. Weights are
rotated over enough copies that none is in a cache when its turn comes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter

import torch

from moesaic.core.formats import WeightFormat
from moesaic.entrypoints.bench import states
from moesaic.entrypoints.bench.report import Figure
from moesaic.kernels.cpu.arena import Arena
from moesaic.kernels.cpu.limits import GIGA, Stream, gemm_kind, gemm_peak
from moesaic.kernels.cpu.matmul import PackedExperts, fused_moe, linear
from moesaic.kernels.cpu.packed import PackedMatrix

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 2048, 1024, 64, 8  # OLMoE-1B-7B
FORMATS = (
    WeightFormat("f32"),
    WeightFormat("bf16"),
    WeightFormat("w8", 128),
    WeightFormat("w4", 128, True),
    WeightFormat("w4", 32, True),
    WeightFormat("w8a8", 128),
)
TOKENS = (1, 4, 16, 64, 512)
COLD_BYTES = 256 << 20  # of weights that are rotated over
SAMPLE_SECONDS = 0.03  # one sample takes at least about so long
WARM_SECONDS = 0.2  # of calls before the first sample: fresh memory is slow at first on virtual machines
PAGE = 4096


@dataclass(frozen=True)
class Call:
    """Something to be timed.

    Attributes:
        run: one call, on weights that no cache holds.
        bytes: of weights that a call reads.
        operations: multiplications and additions of a call.
    """

    run: Callable[[], object]
    bytes: float
    operations: float


def figures(threads: int, runs: int) -> list[Figure]:
    """Each kernel, format and number of tokens: milliseconds, and the share of the floor."""
    stream = Stream()
    found = []
    for format in FORMATS:
        layers = _layers(format)
        for tokens in TOKENS:
            call = _experts_call(layers, tokens)
            found += _figures(f"threads={threads} experts {format} T={tokens}", call, format, stream, runs)
        matrices = _matrices(format)
        for tokens in TOKENS:
            call = _linear_call(matrices, tokens)
            found += _figures(f"threads={threads} linear {format} T={tokens}", call, format, stream, runs)
    for name, kind in states.KINDS.items():
        for sequences in states.SEQUENCES:
            run, moved = states.decode_call(kind, sequences)
            case = f"threads={threads} {name} sequences={sequences}"
            found += _figures(case, Call(run, moved, 0.0), FORMATS[0], stream, runs)
    return found


def _figures(case: str, call: Call, format: WeightFormat, stream: Stream, runs: int) -> list[Figure]:
    _seconds(call.run, 1 + round(WARM_SECONDS / _seconds(call.run, 1)))
    repeats = max(1, round(SAMPLE_SECONDS / _seconds(call.run, 3)))
    times, rates, shares = [], [], []
    read_bound = True
    for _ in range(runs):
        seconds = _seconds(call.run, repeats)
        reading, computing = call.bytes / stream.read(), call.operations / gemm_peak(gemm_kind(format.kind))
        read_bound = reading >= computing
        times.append(seconds * 1e3)
        rates.append((call.bytes if read_bound else call.operations) / seconds / GIGA)
        shares.append(max(reading, computing) / seconds)
    unit = "GB/s" if read_bound else "GFLOP/s"
    measured = (("call", "ms", times), ("rate", unit, rates), ("share", "of the limit", shares))
    return [
        Figure(bench="kernels", case=case, metric=metric, unit=unit, samples=samples)
        for metric, unit, samples in measured
    ]


def _seconds(run: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats


def _experts_call(layers: list[PackedExperts], tokens: int) -> Call:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    weights = torch.rand(tokens, TOP_K, generator=generator)
    # Uniform routing; other tokens' choices with every call.
    choices = [torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K).indices.int() for _ in range(16)]
    touched = sum(len(ids.unique()) for ids in choices) / len(choices)
    expert = layers[0].gate_up[0].nbytes + layers[0].down[0].nbytes
    turns = cycle((ids, layers[i % len(layers)]) for i, ids in enumerate(choices))

    def run() -> None:
        ids, layer = next(turns)
        fused_moe(hidden, ids, weights, layer)

    return Call(run, touched * expert, tokens * TOP_K * 6 * HIDDEN * INTERMEDIATE)


def _linear_call(matrices: list[PackedMatrix], tokens: int) -> Call:
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))
    turns = cycle(matrices)
    return Call(lambda: linear(x, next(turns)), matrices[0].nbytes, tokens * 2 * HIDDEN * matrices[0].rows)


def _layers(format: WeightFormat) -> list[PackedExperts]:
    """Layers that together are cold: the choices of one call are not in a cache at the next."""
    gate_up = _random(2 * INTERMEDIATE, HIDDEN, format, gated=True)
    down = _random(HIDDEN, INTERMEDIATE, format)
    count = -(-COLD_BYTES // (EXPERTS * (gate_up.nbytes + down.nbytes)))
    return [
        PackedExperts(torch.arange(EXPERTS, dtype=torch.int32), _copies(gate_up, EXPERTS), _copies(down, EXPERTS))
        for _ in range(count)
    ]


def _matrices(format: WeightFormat) -> list[PackedMatrix]:
    matrix = _random(3 * HIDDEN, HIDDEN, format)  # queries, keys and values of every head
    return _copies(matrix, -(-COLD_BYTES // matrix.nbytes))


def _random(rows: int, cols: int, format: WeightFormat, gated: bool = False) -> PackedMatrix:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) / cols**0.5
    return PackedMatrix.of(weight, format, gated)


def _copies(matrix: PackedMatrix, count: int) -> list[PackedMatrix]:
    """The same weights at other addresses, as close as a loader lays them."""
    arena = Arena(count * -(-matrix.nbytes // PAGE) * PAGE)
    copies = []
    for _ in range(count):
        data = arena.take(matrix.nbytes, PAGE)
        data.copy_(matrix.data)
        copies.append(PackedMatrix(matrix.rows, matrix.cols, matrix.format, matrix.gated, data))
    return copies
