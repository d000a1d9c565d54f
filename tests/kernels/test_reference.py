"""The oracle against definitions written out one token at a time."""

from types import SimpleNamespace

import pytest
import torch

from moesaic.core.batch import Batch
from moesaic.kernels import reference, reference_attention
from moesaic.kernels.reference import (
    combine,
    fused_moe,
    rms_norm,
    write_kv,
)
from moesaic.kernels.reference_attention import KVCache, paged_attention, plan_attention, rope_table, rotate

BLOCK = 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (7, 3, 32)])
def test_rms_norm(shape, dtype):
    x, weight = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1]).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    out = rms_norm(x, weight, 1e-3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-2)


def test_rms_norm_of_zeros_is_zero():
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_turns_each_pair_by_its_angle(interleaved):
    positions, inverse = torch.tensor([0, 1, 50]), torch.tensor([1.0, 0.1, 0.01])
    x = torch.randn(3, 2, 9)
    out = rotate(x, rope_table(positions, inverse), 2, interleaved)
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[..., :2], x[..., :2]) and torch.equal(out[..., 8:], x[..., 8:])
    for token, position in enumerate(positions.tolist()):
        for pair in range(3):
            a, b = (2 + 2 * pair, 3 + 2 * pair) if interleaved else (2 + pair, 5 + pair)
            z = torch.complex(x[token, :, a], x[token, :, b])
            turned = z * torch.polar(torch.tensor(1.0), torch.tensor(position * inverse[pair].item()))
            torch.testing.assert_close(out[token, :, a], turned.real)
            torch.testing.assert_close(out[token, :, b], turned.imag)


# Experts.


def pages(num_experts=6, hidden=8, size=5, slots=None):
    """Pages in shuffled slots, some of them empty (NaN)."""
    slots = slots or num_experts + 2
    gate_up, down = torch.full((slots, 2 * size, hidden), torch.nan), torch.full((slots, hidden, size), torch.nan)
    slot_of = torch.randperm(slots)[:num_experts].int()
    gate_up[slot_of], down[slot_of] = torch.randn(num_experts, 2 * size, hidden), torch.randn(num_experts, hidden, size)
    return gate_up, down, slot_of


def experts(gate_up, down, slot_of):
    return SimpleNamespace(gate_up=gate_up, down=down, slot_of=slot_of, gate_up_bias=None, down_bias=None)


def choose(tokens, k, num_experts=6):
    return torch.stack([torch.randperm(num_experts)[:k] for _ in range(tokens)]).int()


@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_fused_moe(tokens, k):
    gate_up, down, slot_of = pages()
    hidden, ids, weights = torch.randn(tokens, 8), choose(tokens, k), torch.rand(tokens, k)
    out = fused_moe(hidden, ids, weights, experts(gate_up, down, slot_of))
    for t in range(tokens):
        expected = torch.zeros(8)
        for j in range(k):
            slot = slot_of[ids[t, j]]
            gate, up = (gate_up[slot] @ hidden[t]).chunk(2)
            expected += weights[t, j] * (down[slot] @ (gate * torch.sigmoid(gate) * up))
        torch.testing.assert_close(out[t], expected, rtol=1e-4, atol=1e-5)


def test_fused_moe_touches_chosen_experts_alone():
    """Pages of experts that nobody chose may be absent: they are NaN here."""
    gate_up, down, slot_of = pages()
    ids = torch.tensor([[0, 2], [2, 4], [4, 0]], dtype=torch.int32)
    for expert in (1, 3, 5):
        gate_up[slot_of[expert]] = torch.nan
    assert fused_moe(torch.randn(3, 8), ids, torch.ones(3, 2), experts(gate_up, down, slot_of)).isfinite().all()


def test_combine_sums_in_order_of_choice_in_fp32():
    outputs, weights = torch.randn(4, 3, 8).bfloat16(), torch.rand(4, 3)
    expected = torch.zeros(4, 8)
    for j in range(3):
        expected = expected + outputs[:, j].float() * weights[:, j : j + 1]
    out = combine(outputs, weights)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16())


# Attention.


def paged_case(query_lens, seq_lens, heads=6, kv_heads=2, dim=8, poison=torch.nan):
    """A batch over a paged cache with scattered blocks; slots that hold no token are poisoned."""
    num_blocks = sum(-(-n // BLOCK) for n in seq_lens) + 3
    free = torch.randperm(num_blocks).tolist()
    tables = [[free.pop() for _ in range(-(-n // BLOCK))] for n in seq_lens]
    key = torch.full((num_blocks, BLOCK, kv_heads, dim), poison)
    value = key.clone()
    contents = [(torch.randn(n, kv_heads, dim), torch.randn(n, kv_heads, dim)) for n in seq_lens]
    for table, (k, v) in zip(tables, contents, strict=True):
        slots = torch.tensor([table[p // BLOCK] * BLOCK + p % BLOCK for p in range(len(k))])
        write_kv(KVCache(key, value), k, v, slots)
    width = max(map(len, tables))
    lens = torch.tensor(query_lens)
    batch = Batch(
        token_ids=torch.zeros(sum(query_lens), dtype=torch.int64),
        positions=torch.cat([torch.arange(n - q, n) for q, n in zip(query_lens, seq_lens, strict=True)]),
        slots=torch.zeros(0),
        query_start=torch.cat((torch.zeros(1, dtype=torch.int64), lens.cumsum(0))),
        seq_lens=torch.tensor(seq_lens),
        block_tables=torch.tensor([t + [0] * (width - len(t)) for t in tables]),
        table_rows=torch.arange(len(seq_lens)),
        logits_rows=torch.zeros(0),
        query_lens_host=list(query_lens),
        seq_lens_host=list(seq_lens),
        table_rows_host=list(range(len(seq_lens))),
        seq_ids=list(range(len(seq_lens))),
    )
    return batch, torch.randn(sum(query_lens), heads, dim), key, value, contents


def naive_attention(batch, query, contents, window, scale, kind="sliding"):
    """One token and one head at a time, in fp64."""
    out, row = torch.empty_like(query), 0
    group = query.shape[1] // contents[0][0].shape[1]
    for s, (k, v) in enumerate(contents):
        for _ in range(batch.query_lens_host[s]):
            position = int(batch.positions[row])
            first = max(0, position - window + 1) if window else 0
            if kind == "chunked":
                first = position - position % window
            for head in range(query.shape[1]):
                keys, values = (x[first : position + 1, head // group].double() for x in (k, v))
                weights = torch.softmax(keys @ query[row, head].double() * scale, 0)
                out[row, head] = weights @ values
            row += 1
    return out


KINDS = ("sliding", "chunked")
MIXES = {
    "one token": ([1], [1]),
    "one decode": ([1], [13]),
    "block boundaries": ([1, 1, 1], [4, 8, 5]),
    "decodes of many lengths": ([1] * 6, [1, 3, 17, 16, 30, 9]),
    "a prompt": ([11], [11]),
    "a chunk": ([5], [23]),
    "all kinds": ([1, 7, 1, 3, 1, 12], [6, 7, 21, 19, 2, 30]),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("window", "kind"), [(n, k) for n in (1, 3, 5, 100) for k in KINDS] + [(None, "sliding")])
@pytest.mark.parametrize("limits", ["usual", "small"])
def test_paged_attention(mix, window, kind, limits, monkeypatch):
    if limits == "small":  # queries in pieces, sequences one by one
        monkeypatch.setattr(reference_attention, "SCORE_ELEMENTS", 300)
        monkeypatch.setattr(reference_attention, "LEAST_ROWS", 1)
        monkeypatch.setattr(reference_attention, "GROUP_BYTES", 0)
    batch, query, key, value, contents = paged_case(*MIXES[mix])
    cache = KVCache(key, value)
    out = paged_attention(query, cache, plan_attention(batch, cache, window, kind), 0.4)
    expected = naive_attention(batch, query, contents, window, 0.4, kind)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (6, 3)])
def test_paged_attention_head_counts(heads, kv_heads):
    batch, query, key, value, contents = paged_case([1, 4, 1], [9, 10, 3], heads, kv_heads)
    cache = KVCache(key, value)
    out = paged_attention(query, cache, plan_attention(batch, cache, None), 0.4)
    torch.testing.assert_close(out, naive_attention(batch, query, contents, None, 0.4), rtol=1e-4, atol=1e-5)


def test_paged_attention_in_bf16_sums_in_fp32():
    batch, query, key, value, contents = paged_case([1, 6, 1], [40, 30, 20])
    cache = KVCache(key.bfloat16(), value.bfloat16())
    out = paged_attention(query.bfloat16(), cache, plan_attention(batch, cache, None), 0.4)
    assert out.dtype == torch.bfloat16
    expected = naive_attention(batch, query, contents, None, 0.4)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_groups_stay_within_their_memory(monkeypatch):
    monkeypatch.setattr(reference_attention, "GROUP_BYTES", 3 * 30 * 2 * 2 * 8 * 4)
    batch, _, key, value, _ = paged_case([1] * 7, [30, 29, 28, 27, 26, 25, 24])
    plan = plan_attention(batch, KVCache(key, value), None)
    assert [len(group.rows) for group in plan.groups] == [3, 3]
    assert len(plan.singles) == 1


def test_the_oracle_supports_everything():
    assert reference.supports(None) is None
