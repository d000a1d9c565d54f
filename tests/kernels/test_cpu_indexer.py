"""The sparse indexer in C++ against the oracle: what is chosen, ties included, attention to what was chosen, and the
same bits alone, in a batch and in chunks."""

import pytest
import torch

from moesaic.kernels import reference_attention
from moesaic.kernels import reference_indexer as oracle
from moesaic.kernels.cpu import attention, indexer
from moesaic.kernels.kv_cache import KVCacheSpec
from tests.kernels.test_cpu_attention import BF16_DOT, KINDS, TOLERANCE, Case

LENS = [150, 1, 90, 700]
PARTS = [
    (0, 149, 150),
    (1, 0, 1),
    (2, 50, 90),
    (3, 699, 700),
]  # of sequences: decode, a prompt's first, a chunk, decode
BLOCKS = [16, 32, 4, 5]

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def keys(dtype, dim=32):
    """What the indexer keeps."""
    return KVCacheSpec(1, dim, dtype, value_dim=0, latent=True, tiled=True)


def latents(dtype, size=32, rotary=6, by_token=True):
    return KVCacheSpec(1, size + rotary, dtype, value_dim=size, latent=True, by_token=by_token, tiled=True)


def scores_of(case, query, weights, batch):
    """Of each token, the oracle's scores of all that it sees."""
    out, row = [], 0
    for s, (count, length) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        stored = oracle._keys(case.expected, batch, batch.table_rows_host[s], length)
        for visible in range(length - count + 1, length + 1):
            out.append(weights[row] @ torch.relu(query[row] @ stored[:visible].T))
            row += 1
    return out


def rows_of(selection):
    return [p[:n].tolist() for p, n in zip(selection.positions, selection.counts.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize(("heads", "top_k"), [(3, 5), (20, 64), (7, 149)])
def test_select_positions(dtype, block_size, heads, top_k, isa):
    case = Case(keys(dtype), block_size, LENS, heads)
    batch = case.batch(PARTS)
    query, weights = torch.randn(batch.num_tokens, heads, 32), torch.randn(batch.num_tokens, heads)
    found = indexer.select_positions(query, weights, case.cache, batch, top_k)
    expected = oracle.select_positions(query, weights, case.expected, batch, top_k)
    assert torch.equal(found.counts, expected.counts) and torch.equal(found.tables, expected.tables)
    close = BF16_DOT if dtype is torch.bfloat16 and "bf16" in isa else 1e-5
    for chosen, best, scores in zip(
        rows_of(found), rows_of(expected), scores_of(case, query, weights, batch), strict=True
    ):
        assert chosen == sorted(set(chosen))
        assert scores[chosen].min() >= scores[best].min() - close * scores.abs().max()
        # where products are of bf16, places at the edge of the choice may change hands: each counts twice
        assert len(set(chosen) ^ set(best)) <= (max(2, len(best) // 4) if close == BF16_DOT else 0)


@pytest.mark.parametrize("top_k", [1, 40, 300])
def test_ties_go_to_the_lowest_position(top_k):
    case = Case(keys(torch.float32), 16, [500], 4)
    batch = case.batch([(0, 499, 500)])
    query = torch.randn(1, 4, 32)
    found = indexer.select_positions(query, torch.zeros(1, 4), case.cache, batch, top_k)
    assert rows_of(found) == [list(range(top_k))]
    assert rows_of(oracle.select_positions(query, torch.zeros(1, 4), case.expected, batch, top_k)) == rows_of(found)
    # All that scores above 0 comes first, then the lowest of those that score 0.
    one = torch.tensor([[1.0, 0, 0, 0]])
    [scores] = scores_of(case, query, one, batch)
    above = (scores > 0).nonzero().flatten().tolist()
    expected = sorted(above + [p for p in range(500) if p not in above][: 300 - len(above)])
    assert rows_of(indexer.select_positions(query, one, case.cache, batch, 300)) == [expected]


def test_nan_is_no_score():
    case = Case(keys(torch.float32), 16, [60], 2)
    batch = case.batch([(0, 59, 60)])
    weights = torch.tensor([[torch.nan, 1.0]])
    for module, cache in ((indexer, case.cache), (oracle, case.expected)):
        assert module.select_positions(torch.randn(1, 2, 32), weights, cache, batch, 5).counts.tolist() == [0]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("heads", [2, 40])
def test_selected_attention(dtype, block_size, by_token, heads, isa):
    case = Case(latents(dtype, by_token=by_token), block_size, LENS, heads)
    batch = case.batch(PARTS)
    selection = chosen(batch, 70)
    query = torch.randn(batch.num_tokens, heads, 38)
    out = indexer.selected_attention(query, case.cache, batch, selection, 0.3)
    expected = oracle.selected_attention(query, case.expected, batch, selection, 0.3)
    close = BF16_DOT if dtype is torch.bfloat16 and "bf16" in isa else TOLERANCE[dtype]
    assert (out - expected).abs().max() <= close * expected.abs().max()


def chosen(batch, top_k):
    """A random selection for each token."""
    positions = torch.full((batch.num_tokens, top_k), -1, dtype=torch.int32)
    counts, tables, row = [], [], 0
    for s, (count, length) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        for visible in range(length - count + 1, length + 1):
            n = min(visible, top_k)
            positions[row, :n] = torch.randperm(visible)[:n].sort().values.int()
            counts.append(n)
            tables.append(batch.table_rows_host[s])
            row += 1
    return oracle.Selection(positions, torch.tensor(counts), torch.tensor(tables))


def test_all_positions_are_dense_attention():
    case = Case(latents(torch.float32, by_token=False), 16, [600], 12)
    batch = case.batch([(0, 590, 600)])
    query = torch.randn(10, 12, 38)
    plan = attention.plan_attention(batch, case.cache, None)
    dense = attention.paged_attention(query, case.cache, plan, 0.3)
    sparse = indexer.selected_attention(query, case.cache, batch, chosen(batch, 600), 0.3)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


def test_a_token_has_the_same_bits_alone_and_in_chunks():
    index, latent = Case(keys(torch.bfloat16), 16, LENS, 9), Case(latents(torch.bfloat16), 16, LENS, 9)
    total = sum(LENS)
    query, weights, absorbed = torch.randn(total, 9, 32), torch.randn(total, 9), torch.randn(total, 9, 38)
    starts = [sum(LENS[:s]) for s in range(len(LENS))]

    def run(parts):
        rows = torch.cat([torch.arange(starts[s] + a, starts[s] + b) for s, a, b in parts])
        batch, other = index.batch(parts), latent.batch(parts)
        selection = indexer.select_positions(query[rows], weights[rows], index.cache, batch, 33)
        return rows_of(selection), indexer.selected_attention(absorbed[rows], latent.cache, other, selection, 0.3)

    positions, mixed = run([(s, 0, n) for s, n in enumerate(LENS)])
    for parts in ([(3, 100, 130), (0, 149, 150)], [(2, 0, 7)], [(3, 699, 700)]):
        rows = torch.cat([torch.arange(starts[s] + a, starts[s] + b) for s, a, b in parts])
        some, out = run(parts)
        assert some == [positions[row] for row in rows.tolist()]
        assert torch.equal(out, mixed[rows])


@pytest.mark.parametrize("interleaved", [False, True])
def test_prepare_index(interleaved):
    spec = keys(torch.float32, 24)
    caches = attention.new_cache(spec, 3, 16), reference_attention.new_cache(KVCacheSpec(1, 24, torch.float32), 3, 16)
    caches[1].value = caches[1].key
    query, key, slots = torch.randn(7, 3, 24), torch.randn(7, 24), torch.randperm(48)[:7]
    table = reference_attention.rope_table(torch.arange(7), torch.rand(5))
    for used in (table, None):
        found = indexer.prepare_index(query, key, used, slots, caches[0], interleaved)
        expected = oracle.prepare_index(query, key, used, slots, caches[1], interleaved)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        stored = caches[0].data.view(torch.float32).view(3, 24, 16).transpose(1, 2).flatten(0, 1)[slots]
        torch.testing.assert_close(stored, caches[1].key.flatten(0, 2)[slots], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    case, latent = Case(keys(torch.float32), 16, [9], 2), Case(latents(torch.float32), 16, [9], 2)
    batch = case.batch([(0, 8, 9)])
    query, weights = torch.randn(1, 2, 32), torch.randn(1, 2)
    selection = indexer.select_positions(query, weights, case.cache, batch, 4)
    slots = torch.zeros(1, dtype=torch.int64)
    for call in (
        lambda: indexer.select_positions(query[..., :31], weights, case.cache, batch, 4),
        lambda: indexer.select_positions(query, weights[:, :1], case.cache, batch, 4),
        lambda: indexer.selected_attention(query, latent.cache, batch, selection, 1.0),
        lambda: indexer.selected_attention(torch.randn(2, 2, 38), latent.cache, batch, selection, 1.0),
        lambda: indexer.prepare_index(query, torch.randn(1, 31), None, slots, case.cache),
        lambda: indexer.prepare_index(query, torch.randn(1, 32), torch.ones(2, 4), slots, case.cache),
        lambda: attention.new_cache(KVCacheSpec(1, 32, torch.float32, by_token=True, tiled=True), 1, 16),
    ):
        with pytest.raises(ValueError, match="queries|a table|only a latent"):
            call()
