"""Attention in C++ against the oracle: the cache's formats and block sizes, rotation, what is written, what is read;
and the same bits alone, in a batch, in chunks and on two threads."""

import pytest
import torch

from moesaic.core.batch import Batch
from moesaic.kernels import reference_attention as oracle
from moesaic.kernels.cpu import attention as cpu
from moesaic.kernels.kv_cache import KVCacheSpec

# What rounding keys and values to the cache's dtype, and with AVX512-BF16 queries and weights too, may cost.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5, torch.int8: 5e-5}
BF16_DOT = 2e-2
KINDS = list(TOLERANCE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def spec_of(dtype=torch.float32, kv_heads=2, dim=16, tiled=True, **more):
    return KVCacheSpec(num_kv_heads=kv_heads, head_dim=dim, dtype=dtype, tiled=tiled, **more)


class Case:
    """Sequences over a cache with scattered blocks, in both layouts; slots without a token hold NaN."""

    def __init__(self, spec, block_size, seq_lens, heads):
        self.spec, self.block_size, self.heads = spec, block_size, heads
        num_blocks = sum(-(-n // block_size) for n in seq_lens) + 2
        free = torch.randperm(num_blocks).tolist()
        self.tables = [[free.pop() for _ in range(-(-n // block_size))] for n in seq_lens]
        self.cache = cpu.new_cache(spec, num_blocks, block_size)
        self.cache.fill_(torch.nan)
        self.expected = oracle.new_cache(KVCacheSpec(**{**vars(spec), "tiled": False}), num_blocks, block_size)
        self.queries = [torch.randn(n, heads, spec.head_dim) for n in seq_lens]
        for s, n in enumerate(seq_lens):
            key = torch.randn(n, spec.num_kv_heads, spec.head_dim)
            value = None if spec.latent else torch.randn(n, spec.num_kv_heads, spec.value_size)
            for module, cache in ((cpu, self.cache), (oracle, self.expected)):
                module.write_kv(cache, key, value, self.slots(s, 0, n))

    def slots(self, s, start, end):
        size = self.block_size
        return torch.tensor([self.tables[s][p // size] * size + p % size for p in range(start, end)], dtype=torch.int64)

    def batch(self, parts, indirect=False):
        """Rows start:end of sequences: [(s, start, end)]."""
        width = max(map(len, self.tables))
        tables = torch.tensor([t + [0] * (width - len(t)) for t in self.tables])
        order = torch.tensor([s for s, _, _ in parts], dtype=torch.int64)
        lens = torch.tensor([end - start for _, start, end in parts], dtype=torch.int64)
        return Batch(
            token_ids=torch.zeros(int(lens.sum()), dtype=torch.int64),
            positions=torch.cat([torch.arange(start, end) for _, start, end in parts]),
            slots=torch.cat([self.slots(*part) for part in parts]),
            query_start=torch.cat((torch.zeros(1, dtype=torch.int64), lens.cumsum(0))),
            seq_lens=torch.tensor([end for _, _, end in parts], dtype=torch.int64),
            block_tables=tables if indirect else tables[order],
            logits_rows=torch.zeros(0),
            query_lens_host=lens.tolist(),
            seq_lens_host=[end for _, _, end in parts],
            seq_ids=order.tolist(),
            table_rows=order if indirect else torch.arange(len(parts)),
            table_rows_host=order.tolist() if indirect else list(range(len(parts))),
        )

    def attend(self, parts, window=None, kind="sliding", indirect=False, module=cpu, **options):
        """The output for these rows."""
        batch = self.batch(parts, indirect)
        query = torch.cat([self.queries[s][start:end] for s, start, end in parts])
        cache = self.cache if module is cpu else self.expected
        scale = 1.2 * self.spec.head_dim**-0.5
        plan = module.plan_attention(batch, cache, window, kind)
        return module.paged_attention(query, cache, plan, scale, **options)

    def compare(self, parts, isa, **options):
        out, expected = (self.attend(parts, module=module, **options) for module in (cpu, oracle))
        tolerance = TOLERANCE[self.spec.dtype]
        if isa == "avx512_bf16" and self.spec.dtype is torch.bfloat16:
            tolerance = BF16_DOT
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


MIX = [(0, 0, 1), (1, 36, 37), (2, 0, 130), (3, 150, 163), (4, 299, 300), (5, 0, 16)]
LENS = [1, 37, 130, 163, 300, 16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16, 32, 48, 100])
def test_a_block_takes_what_its_spec_says(isa, kind, block_size):
    for dim, value in ((8, None), (10, 7), (80, 128)):
        spec = spec_of(kind, 3, dim, value_dim=value)
        assert cpu.block_bytes(spec, block_size) == spec.bytes_per_block(block_size)
    for by_token in (False, True):
        for dim, value in ((40, 32), (37, 0)):
            spec = spec_of(kind, 1, dim, value_dim=value, latent=True, by_token=by_token)
            assert cpu.block_bytes(spec, block_size) == spec.bytes_per_block(block_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [1, 4, 5, 16, 32])
def test_kinds_and_block_sizes(isa, kind, block_size):
    Case(spec_of(kind), block_size, LENS, heads=6).compare(MIX, isa)


@pytest.mark.parametrize("dim", [8, 10, 12, 24, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_head_dims(isa, dim, kind):
    Case(spec_of(kind, dim=dim), 16, LENS, heads=2).compare(MIX, isa)


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(1, 1), (4, 4), (6, 3), (9, 3), (5, 1), (14, 2), (8, 1), (40, 1), (130, 1)]
)
def test_head_counts(isa, heads, kv_heads):
    Case(spec_of(torch.bfloat16, kv_heads), 16, LENS, heads).compare(MIX, isa)


@pytest.mark.parametrize("window", [1, 2, 15, 64, 100, 1000])
@pytest.mark.parametrize("block_size", [4, 16])
def test_windows(isa, window, block_size):
    Case(spec_of(), block_size, LENS, heads=6).compare(MIX, isa, window=window)


@pytest.mark.parametrize("chunk", [1, 2, 15, 64, 100, 1000])
@pytest.mark.parametrize("block_size", [4, 16])
def test_chunks_of_positions(isa, chunk, block_size):
    Case(spec_of(), block_size, LENS, heads=6).compare(MIX, isa, window=chunk, kind="chunked")


def test_query_temperature(isa):
    positions = torch.arange(50)
    for offset in (0, 1):
        ours, expected = (m.query_temperature(positions, 0.3, 7, offset) for m in (cpu, oracle))
        torch.testing.assert_close(ours, expected)
    assert ours.shape == (50, 1) and ours[5] == 1 and ours[6] > 1
    ours, expected = (m.query_temperature(positions, 0.3, 7, 1, "power") for m in (cpu, oracle))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(ours[6], torch.tensor([2**0.3]))


@pytest.mark.parametrize("kind", KINDS)
def test_sinks_softcap_and_value_dim(isa, kind):
    case = Case(spec_of(kind, value_dim=40), 16, LENS, heads=4)
    case.compare(MIX, isa, sinks=torch.randn(4) * 3)
    case.compare(MIX, isa, softcap=2.0)
    case.compare(MIX, isa, softcap=5.0, sinks=torch.tensor([-50.0, 50.0, 0.0, 1.0]), window=33, indirect=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [4, 16])
def test_latent(isa, kind, block_size):
    Case(spec_of(kind, 1, 40, value_dim=32, latent=True), block_size, LENS, heads=5).compare(MIX, isa)


def test_latent_as_large_as_they_are(isa):
    Case(spec_of(torch.bfloat16, 1, 576, value_dim=512, latent=True), 16, [90, 20], heads=16).compare(
        [(0, 89, 90), (1, 0, 20)], isa
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [2, 8])
def test_long_sequences_are_cut(isa, kind, heads):
    """Beyond one split, with few and many rows; the work of one sequence is shared between threads."""
    torch.set_num_threads(2)
    case = Case(spec_of(kind), 16, [1500, 700], heads)
    case.compare([(0, 1499, 1500)], isa)
    case.compare([(0, 1400, 1500), (1, 699, 700)], isa, window=600, sinks=torch.randn(heads))


def test_random_mixes(isa):
    for _ in range(10):
        lens = torch.randint(1, 300, (7,)).tolist()
        starts = [int(torch.randint(0, n, ())) for n in lens]
        kind = KINDS[int(torch.randint(0, 4, ()))]
        group, kv_heads = int(torch.randint(1, 9, ())), int(torch.randint(1, 4, ()))
        case = Case(spec_of(kind, kv_heads, 20), 16, lens, group * kv_heads)
        case.compare([(s, starts[s], lens[s]) for s in range(7)], isa)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block_size", "latent", "window"), [(16, False, None), (4, False, 70), (16, True, None)])
def test_the_same_bits_alone_batched_chunked_and_threaded(isa, kind, block_size, latent, window):
    lens = [701, 95, 40, 8]
    spec = spec_of(kind, 1, 40, value_dim=32, latent=True) if latent else spec_of(kind, dim=24)
    case = Case(spec, block_size, lens, heads=4)
    sinks = torch.randn(4)

    whole = [case.attend([(s, 0, n)], window, sinks=sinks) for s, n in enumerate(lens)]
    assert all(out.isfinite().all() for out in whole)
    ways = {
        "batched": [[(s, 0, n) for s, n in enumerate(lens)]],
        "tokens": [[(s, p, p + 1) for s, n in enumerate(lens) if p < n] for p in (*range(20), 63, 64, 511, 512, 700)],
        "chunked": [[(s, p, min(p + 37, n)) for s, n in enumerate(lens) if p < n] for p in range(0, 701, 37)],
        "odd": [[(2, 0, 40), (0, 0, 600)], [(3, 0, 7), (0, 600, 699), (1, 0, 95)], [(0, 699, 701), (3, 7, 8)]],
    }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, rounds in ways.items():
            for parts in rounds:
                expected = torch.cat([whole[s][start:end] for s, start, end in parts])
                assert torch.equal(case.attend(parts, window, sinks=sinks), expected), (name, threads, parts)


def test_no_tokens(isa):
    case = Case(spec_of(), 16, [5], heads=2)
    batch = case.batch([(0, 5, 5)])
    out = cpu.paged_attention(torch.empty(0, 2, 16), case.cache, cpu.plan_attention(batch, case.cache, None), 1.0)
    assert out.shape == (0, 2, 16)
    none = torch.empty(0, dtype=torch.int64)
    assert cpu.prepare_qkv(torch.empty(0, 96), 2, 2, None, none, case.cache).shape == (0, 2, 16)
    assert cpu.rope_table(none, torch.ones(4)).shape == (0, 8)


# What comes before.


def test_rope_table(isa):
    positions = torch.cat((torch.arange(300), torch.tensor([4095, 32767, 131071])))
    inverse = 1.0 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    out, expected = cpu.rope_table(positions, inverse, 1.25), oracle.rope_table(positions, inverse, 1.25)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotary", "start"), [(16, 16, 0), (24, 10, 0), (40, 8, 32)])
def test_rotate(isa, dim, rotary, start, interleaved):
    table = oracle.rope_table(torch.arange(19), torch.rand(rotary // 2))
    x = torch.randn(19, 3, dim)
    out, expected = (module.rotate(x, table, start, interleaved) for module in (cpu, oracle))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary": 16},
        {"rotary": 12, "interleaved": True, "clip": 0.5},
        {"rotary": 16, "norm": "head"},
        {"norm": "full", "clip": 1.0},
    ],
    ids=str,
)
def test_prepare_qkv(isa, kind, options):
    options = dict(options)
    heads, dim, tokens = 6, 16, 37
    case = Case(spec_of(kind, 2, dim, value_dim=24), 16, [tokens], heads)
    rotary, norm, table = options.pop("rotary", None), options.pop("norm", None), None
    if rotary:
        table = oracle.rope_table(torch.arange(tokens), torch.rand(rotary // 2))
    if norm:
        sizes = (dim, dim) if norm == "head" else (heads * dim, 2 * dim)
        options |= {"eps": 1e-5, "q_norm": torch.rand(sizes[0]), "k_norm": torch.rand(sizes[1])}
    qkv = torch.randn(tokens, heads * dim + 2 * (dim + 24))
    query, expected = (
        module.prepare_qkv(qkv, heads, 2, table, case.slots(0, 0, tokens), cache, **options)
        for module, cache in ((cpu, case.cache), (oracle, case.expected))
    )
    torch.testing.assert_close(query, expected, rtol=1e-5, atol=1e-6)
    case.queries = [query]
    out, expected = (case.attend([(0, 0, tokens)], module=module) for module in (cpu, oracle))
    # A key may round the other way where the two compute it with different last bits.
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02 if kind is not torch.float32 else 1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("block_size", [1, 16, 32, 40])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_k": 7}, {"top_k": 20, "window": 33}, {"top_k": 11, "softcap": 1.5}, {"top_k": 10_000}],
    ids=str,
)
def test_the_best_keys_alone(isa, kind, block_size, options):
    case = Case(spec_of(kind, value_dim=24), block_size, LENS, heads=6)
    for sinks in (None, torch.randn(6)):
        outs = [case.attend(MIX, module=module, sinks=sinks, **options) for module in (cpu, oracle)]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_of_equal_keys_the_earliest_are_the_best(isa, kind):
    case = Case(spec_of(kind), 16, [50], heads=2)
    case.queries = [torch.zeros(50, 2, 16)]
    out, expected = (case.attend([(0, 0, 50)], module=module, top_k=3) for module in (cpu, oracle))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[2:], out[2:3].expand(48, 2, 16), rtol=0, atol=0)


def test_a_row_to_its_best_keys_is_the_same_alone_in_a_batch_and_in_chunks(isa):
    case = Case(spec_of(torch.bfloat16), 16, [70, 9], heads=4)
    whole = case.attend([(0, 0, 70), (1, 0, 9)], top_k=6)
    assert torch.equal(case.attend([(0, 0, 33)], top_k=6), whole[:33])
    assert torch.equal(case.attend([(1, 8, 9), (0, 33, 70)], top_k=6)[1:], whole[33:70])
    assert torch.equal(case.attend([(1, 8, 9)], top_k=6), whole[78:])


def test_what_cannot_be_served_is_refused(isa):
    with pytest.raises(ValueError, match="not torch.float64"):
        cpu.new_cache(spec_of(torch.float64), 1, 16)
    with pytest.raises(ValueError, match="latent"):
        cpu.new_cache(spec_of(kv_heads=2, latent=True), 1, 16)
    case = Case(spec_of(), 16, [5], heads=2)
    with pytest.raises(ValueError, match="96 columns"):
        cpu.prepare_qkv(torch.empty(5, 95), 2, 2, None, case.slots(0, 0, 5), case.cache)
    plan = cpu.plan_attention(case.batch([(0, 0, 5)]), case.cache, None)
    with pytest.raises(ValueError, match="queries are"):
        cpu.paged_attention(torch.empty(5, 3, 16), case.cache, plan, 1.0)
    with pytest.raises(ValueError, match="sinks"):
        cpu.paged_attention(torch.empty(5, 2, 16), case.cache, plan, 1.0, sinks=torch.zeros(3))
    with pytest.raises(ValueError, match="best 0 keys"):
        cpu.paged_attention(torch.empty(5, 2, 16), case.cache, plan, 1.0, top_k=0)
    with pytest.raises(ValueError, match="contiguous"):
        cpu.paged_attention(torch.empty(5, 2, 32)[..., ::2], case.cache, plan, 1.0)
    with pytest.raises(ValueError, match="does not turn"):
        cpu.rotate(torch.empty(5, 2, 16), torch.empty(4, 16))
    with pytest.raises(ValueError, match=r"32 \+ 32 \+ 32 columns"):
        cpu.prepare_qkv(
            (torch.empty(5, 32), torch.empty(5, 32), torch.empty(5, 31)), 2, 2, None, case.slots(0, 0, 5), case.cache
        )
    with pytest.raises(ValueError, match="dense float32 rows"):
        cpu.rotate(torch.empty(5, 2, 32)[..., ::2], torch.empty(5, 16))


def test_columns_of_a_merged_projection_need_no_copy(isa):
    case = Case(spec_of(), 16, [7], heads=4)
    merged, slots, table = torch.randn(7, 128), case.slots(0, 0, 7), oracle.rope_table(torch.arange(7), torch.rand(8))
    parts = merged.split((64, 32, 32), -1)
    case.cache.data.zero_()
    whole = cpu.prepare_qkv(merged, 4, 2, None, slots, case.cache)
    kept = case.cache.data.clone()
    case.cache.data.zero_()
    assert torch.equal(cpu.prepare_qkv(tuple(parts), 4, 2, None, slots, case.cache), whole)
    assert torch.equal(case.cache.data, kept)
    heads = parts[1].view(7, 2, 16)
    assert torch.equal(cpu.rotate(heads, table), cpu.rotate(heads.contiguous(), table))
    torch.testing.assert_close(cpu.rotate(heads, table), oracle.rotate(heads, table), rtol=1e-5, atol=1e-6)
