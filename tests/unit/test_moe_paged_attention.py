"""Experts with caches of their own against dense, masked attention, in chunks and batches; who holds which blocks."""

from itertools import product

import pytest
import torch

from moesaic.core.batch import Batch
from moesaic.core.errors import ConfigError
from moesaic.kernels import reference_attention as oracle
from moesaic.kernels.cpu import library
from moesaic.layers.base import REFERENCE, BuildContext
from moesaic.layers.kv_cache import ExpertPagesSpec, KVCacheSpec
from moesaic.layers.moe_paged_attention import MoEPagedAttention, OutOfBlocksError, SharedPages
from moesaic.layers.rope import inverse_frequencies
from moesaic.models.spec import RopeSpec
from moesaic.scheduler.block_pool import BlockPool
from moesaic.scheduler.prefix_cache import PrefixCache

HIDDEN, EXPERTS, HEADS, KV_HEADS, DIM, K, BLOCK = 24, 5, 4, 2, 16, 2, 4
ROPE = RopeSpec(theta=100.0)
LENGTHS = {7: 23, 3: 11}
BACKENDS = ["reference"] + (["cpu"] if not library.describe().startswith("unavailable") else [])


def layer_of(backend, num_blocks=64, pages=None, seed=0):
    ctx = BuildContext(torch.device("cpu"), torch.float32, backends=dict.fromkeys(REFERENCE, backend))
    layer = MoEPagedAttention(HIDDEN, EXPERTS, HEADS, DIM, KV_HEADS, rope=ROPE, bias=True, ctx=ctx.under("attention"))
    layer.pages = pages or pages_of(layer, num_blocks)
    parameters = {}
    generator = torch.Generator().manual_seed(seed)
    for name, view in layer.named_views():
        shape = view.shape
        parameters[name] = torch.randn(shape, generator=generator) / HIDDEN**0.5
        view.copy_(parameters[name]) if isinstance(view, torch.Tensor) else view.fill(parameters[name])
    return layer, parameters


def pages_of(layer, num_blocks):
    cache = layer.cache_spec.allocate(num_blocks, BLOCK, "cpu")
    cache.fill_(float("nan"))
    return SharedPages(BlockPool(num_blocks, PrefixCache(False)), cache)


def inputs(length, seed):
    """hidden, ids, weights of a sequence."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(length, EXPERTS, generator=generator)
    weights = torch.rand(length, K, generator=generator)
    return torch.randn(length, HIDDEN, generator=generator), scores.topk(K).indices.int(), weights


SEQUENCES = {seq: inputs(length, seq) for seq, length in LENGTHS.items()}


def batch_of(starts, ends):
    """Sequences from `starts` to `ends`."""
    lens = [ends[seq] - starts[seq] for seq in ends]
    total, nothing = sum(lens), torch.zeros(0, dtype=torch.int64)
    return Batch(
        token_ids=torch.zeros(total, dtype=torch.int64),
        positions=torch.cat([torch.arange(starts[seq], ends[seq]) for seq in ends]),
        slots=nothing,
        query_start=nothing,
        seq_lens=nothing,
        block_tables=nothing,
        table_rows=nothing,
        logits_rows=nothing,
        query_lens_host=lens,
        seq_lens_host=list(ends.values()),
        table_rows_host=[],
        seq_ids=list(ends),
    )


def feed(layer, sequences, sizes):
    """Run sequences in steps of these sizes (the last repeats); outputs of each, whole."""
    done, outputs, turn = dict.fromkeys(sequences, 0), {seq: [] for seq in sequences}, 0
    while any(done[seq] < len(sequences[seq][0]) for seq in sequences):
        size = sizes[min(turn, len(sizes) - 1)]
        ends = {s: min(done[s] + size, len(x[0])) for s, x in sequences.items() if done[s] < len(x[0])}
        parts = [torch.cat([sequences[s][i][done[s] : end] for s, end in ends.items()]) for i in range(3)]
        out = layer(*parts, batch_of(done, ends))
        for s, rows in zip(ends, out.split([end - done[s] for s, end in ends.items()]), strict=True):
            outputs[s].append(rows)
        done.update(ends)
        turn += 1
    return {seq: torch.cat(rows) for seq, rows in outputs.items()}


def dense(parameters, hidden, ids, weights):
    """The definition: of each expert full attention, among its own tokens alone."""
    length = len(hidden)
    table = oracle.rope_table(torch.arange(length), *inverse_frequencies(ROPE, DIM))
    out = torch.zeros_like(hidden)
    for e in range(EXPERTS):
        own = {name.removeprefix(f"experts.{e}."): p for name, p in parameters.items() if f"experts.{e}." in name}
        q, k, v = ((hidden @ own[f"{part}.weight"].T + own[f"{part}.bias"]).view(length, -1, DIM) for part in "qkv")
        q, k = oracle.rotate(q, table), oracle.rotate(k, table)
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
        member = (ids == e).any(1)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & member
        scores = torch.einsum("thd,shd->hts", q, k) * DIM**-0.5
        mixed = torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -1e30).softmax(-1), v)
        share = (weights * (ids == e)).sum(1, keepdim=True)
        out += share * (mixed.flatten(1) @ own["o.weight"].T)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[100], [1], [5, 1, 7, 2]], ids=str)
def test_agrees_with_dense_attention_among_an_experts_tokens(backend, sizes):
    layer, parameters = layer_of(backend)
    outputs = feed(layer, SEQUENCES, sizes)
    for seq, case in SEQUENCES.items():
        torch.testing.assert_close(outputs[seq], dense(parameters, *case), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference backend does not promise bits")
def test_the_bits_depend_on_neither_chunks_nor_neighbours():
    together = feed(layer_of("cpu")[0], SEQUENCES, [100])
    for sizes in ([1], [5, 1, 7, 2]):
        alone = feed(layer_of("cpu")[0], {7: SEQUENCES[7]}, sizes)
        assert torch.equal(alone[7], together[7])


def test_blocks_are_taken_for_routed_pairs_alone():
    layer, _ = layer_of("reference")
    feed(layer, SEQUENCES, [6])
    tokens = {
        (seq, e): n for seq, (_, ids, _) in SEQUENCES.items() for e in range(EXPERTS) if (n := int((ids == e).sum()))
    }
    assert {pair: len(blocks) for pair, blocks in layer.tables.blocks().items()} == {
        pair: -(-n // BLOCK) for pair, n in tokens.items()
    }
    layer.pages.blocks.check_integrity(layer.tables.blocks().values())
    hidden, ids, weights = inputs(9, 5)
    feed(layer, {5: (hidden, torch.full_like(ids, -1), weights)}, [4])
    feed(layer, {6: (hidden, torch.tensor([[4, -1]] * 9), weights)}, [4])
    assert [pair for pair in layer.tables.blocks() if pair[0] in (5, 6)] == [(6, 4)]


def test_a_choice_that_is_left_out_gives_nothing():
    layer, parameters = layer_of("reference")
    hidden, ids, weights = inputs(9, 5)
    ids[2], ids[5, 0] = -1, -1
    out = feed(layer, {5: (hidden, ids, weights)}, [4])[5]
    assert (out[2] == 0).all()
    torch.testing.assert_close(out, dense(parameters, hidden, ids, weights), rtol=1e-4, atol=1e-5)


def test_a_sequence_that_goes_gives_back_what_it_had():
    layer, parameters = layer_of("reference")
    feed(layer, SEQUENCES, [6])
    kept = {pair: blocks for pair, blocks in layer.tables.blocks().items() if pair[0] == 3}
    layer.free(7)
    layer.free(99)
    assert layer.tables.blocks() == kept
    assert layer.pages.blocks.num_used == sum(len(blocks) for blocks in kept.values())
    again = feed(layer, {7: SEQUENCES[7]}, [100])[7]  # as after a preemption, in blocks that others had
    torch.testing.assert_close(again, dense(parameters, *SEQUENCES[7]), rtol=1e-4, atol=1e-5)
    layer.pages.blocks.check_integrity(layer.tables.blocks().values())


def test_an_empty_pool_is_a_clear_error_that_changes_nothing():
    layer, parameters = layer_of("reference", num_blocks=14)
    feed(layer, {3: SEQUENCES[3]}, [4])
    before, case = layer.tables.blocks(), SEQUENCES[7]
    needs = r"46 tokens of sequences \[7\] with experts \[0, 1, 2, 3, 4\] take \d+ more blocks, and \d are free"
    with pytest.raises(OutOfBlocksError, match=f"attention: {needs}: free a sequence"):
        feed(layer, {7: case}, [100])
    assert layer.tables.blocks() == before
    layer.free(3)
    torch.testing.assert_close(feed(layer, {7: case}, [100])[7], dense(parameters, *case), rtol=1e-4, atol=1e-5)


def test_allocate():
    layer, _ = layer_of("reference", num_blocks=4)
    first = layer.allocate(2, 5)
    assert len(first) == 2 and layer.allocate(2, 8) == first and layer.allocate(2, 9)[:2] == first
    with pytest.raises(
        OutOfBlocksError, match=r"5 tokens of sequences \[1\] with experts \[0\] take 2 more blocks, and 1 are"
    ):
        layer.allocate(0, 5, 1)
    assert layer.tables.blocks().keys() == {(0, 2)}
    with pytest.raises(ConfigError, match="attention has no expert 5, but 5 of them"):
        layer.allocate(5, 1)
    layer.pages = None
    with pytest.raises(ConfigError, match="attention has no pages"):
        layer.allocate(0, 1)


def test_layers_share_one_pool():
    first, parameters = layer_of("reference")
    second, others = layer_of("reference", pages=first.pages, seed=1)
    outputs = feed(first, SEQUENCES, [6]), feed(second, SEQUENCES, [5])
    for out, weights in zip(outputs, (parameters, others), strict=True):
        torch.testing.assert_close(out[7], dense(weights, *SEQUENCES[7]), rtol=1e-4, atol=1e-5)
    tables = [*first.tables.blocks().values(), *second.tables.blocks().values()]
    first.pages.blocks.check_integrity(tables)
    assert len({block for table in tables for block in table}) == sum(map(len, tables))


def test_a_sequence_goes_on_where_it_stopped():
    layer, _ = layer_of("reference")
    hidden, ids, weights = SEQUENCES[3]
    feed(layer, {3: (hidden[:5], ids[:5], weights[:5])}, [5])
    with pytest.raises(ValueError, match="sequence 3 goes on at token 0, but 5 of its tokens are here; free it"):
        feed(layer, {3: (hidden[:2], ids[:2], weights[:2])}, [2])
    with pytest.raises(ValueError, match="a token is routed to expert 5 of 5"):
        feed(layer, {4: (hidden[:1], torch.tensor([[5, 0]]), weights[:1])}, [1])


def test_what_is_set_aside_for_a_sequence_is_the_most_it_can_take():
    """Whatever way two of three experts are chosen; and in one way all of it is taken."""
    kv, left = KVCacheSpec(1, 4, torch.float32), set()
    for length in range(1, 13):
        pages = ExpertPagesSpec(kv, per_block=2, per_slot=2).allocate(-(-length // BLOCK), 1, BLOCK, "cpu")
        for a, b in product(range(length + 1), repeat=2):
            if 0 <= 2 * length - a - b <= length:
                taken = sum(-(-tokens // BLOCK) for tokens in (a, b, 2 * length - a - b))
                left.add(pages.blocks.num_free - taken)
    assert min(left) == 0


def test_top_k_is_kept_to():
    ctx = BuildContext(torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match="top_k must be from 1 to 5, the number of experts, got 6"):
        MoEPagedAttention(HIDDEN, EXPERTS, HEADS, DIM, top_k=6, ctx=ctx)
    layer, _ = layer_of("reference")
    layer.top_k = 1
    with pytest.raises(ValueError, match="attention: a token has 2 experts, and top_k is 1"):
        feed(layer, SEQUENCES, [6])


def test_a_sequence_that_leaves_before_there_are_pages_has_nothing():
    layer, _ = layer_of("reference")
    layer.pages = None
    layer.free(7)


def test_heads_must_divide():
    ctx = BuildContext(torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match="4 heads of queries do not share 3 KV heads evenly"):
        MoEPagedAttention(HIDDEN, EXPERTS, 4, DIM, 3, ctx=ctx)
