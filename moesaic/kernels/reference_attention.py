"""The oracle's attention over a paged cache: plan once a step, run once a layer.

Contract of the cache: key and value are `[blocks, block_size, kv_heads, head_dim]`; token p of a sequence lies in
block `table[p // block_size]` at offset `p % block_size`. Slots that hold no token of the sequence may hold anything,
NaN too, and never reach an output: what is gathered is cut to the sequence's length or overwritten with zeros.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.core.batch import Batch

# Sequences with one query token are computed together while the keys and values gathered for them stay this small:
# beyond the processor's cache, one sequence at a time is faster.
GROUP_BYTES = 1 << 20
SCORE_ELEMENTS = 1 << 24  # a longer query is cut so that its scores have at most about this many elements (64 MB)


@dataclass
class DecodeGroup:
    """Sequences with one query token each, computed together.

    Attributes:
        rows: `[S]` int64, their rows in the batch.
        blocks: `[S * n]` int64, the n blocks of each that its token may look at.
        num_sequences, skip, length: how many, and which of the n * block_size gathered positions are used.
        invalid: `[S, 1, 1, length]` bool, positions that hold no token that may be seen; None when all are valid.
    """

    rows: Tensor
    blocks: Tensor
    num_sequences: int
    skip: int
    length: int
    invalid: Tensor | None


@dataclass
class Prefill:
    """One sequence with several query tokens: rows [row, row + num_queries), the last of `seq_len` tokens."""

    row: int
    num_queries: int
    seq_len: int
    blocks: Tensor  # [n] int64


@dataclass
class AttentionPlan:
    """What all layers with the same window share in a step."""

    window: int | None
    groups: list[DecodeGroup]
    prefills: list[Prefill]


def plan_attention(batch: Batch, block_size: int, window: int | None, token_bytes: int) -> AttentionPlan:
    """Sort the step's sequences into groups.

    Args:
        window: tokens that a token sees, itself included; None for all.
        token_bytes: of one token's key and value in one layer.
    """
    plan = AttentionPlan(window, [], [])
    single: list[tuple[int, int, int]] = []  # length, sequence, row
    row = 0
    for s, (num_queries, seq_len) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        if num_queries == 1:
            single.append((seq_len, s, row))
        else:
            blocks = batch.block_tables[s, : -(-seq_len // block_size)]
            plan.prefills.append(Prefill(row, num_queries, seq_len, blocks))
        row += num_queries
    single.sort()  # by length, so that little is padded
    while single:
        group = [single.pop()]
        span = (min(group[0][0], window or group[0][0]) + block_size) * token_bytes
        while single and (len(group) + 1) * span <= GROUP_BYTES:
            group.append(single.pop())
        plan.groups.append(_decode_group(batch, block_size, window, group))
    return plan


def _decode_group(
    batch: Batch, block_size: int, window: int | None, members: list[tuple[int, int, int]]
) -> DecodeGroup:
    """The gather for sequences (length, sequence, row), the longest first."""
    lengths = [length for length, _, _ in members]
    # Per sequence: the first token seen, its block, and the place of both among the gathered positions.
    firsts = [max(0, length - window) if window else 0 for length in lengths]
    first_blocks = [first // block_size for first in firsts]
    num_blocks = max(-(-n // block_size) - b for n, b in zip(lengths, first_blocks, strict=True))
    device = batch.block_tables.device
    if len(members) == 1:
        (length, s, row), b = members[0], first_blocks[0]
        blocks = batch.block_tables[s, b : b + num_blocks]
        rows = torch.tensor([row], device=device)
        skip = firsts[0] - b * block_size
        return DecodeGroup(rows, blocks, 1, skip, length - firsts[0], None)

    sequences = torch.tensor([s for _, s, _ in members], device=device)
    rows = torch.tensor([row for _, _, row in members], device=device)
    starts = torch.tensor(first_blocks, device=device)[:, None]  # [S, 1]
    columns = starts + torch.arange(num_blocks, device=device)  # [S, n]
    columns.clamp_(max=batch.block_tables.shape[1] - 1)  # past a short sequence's end: masked below
    blocks = batch.block_tables[sequences[:, None], columns].flatten()
    positions = starts * block_size + torch.arange(num_blocks * block_size, device=device)  # [S, length]
    invalid = positions >= torch.tensor(lengths, device=device)[:, None]
    if window:
        invalid |= positions < torch.tensor(firsts, device=device)[:, None]
    return DecodeGroup(rows, blocks, len(members), 0, num_blocks * block_size, invalid[:, None, None])


def write_kv(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Store the step's keys and values `[T, kv_heads, head_dim]` at flat `slots` `[T]` of the caches, in place."""
    key_cache.view(-1, *key.shape[1:]).index_copy_(0, slots, key)
    value_cache.view(-1, *value.shape[1:]).index_copy_(0, slots, value)


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Causal attention of each query token to its sequence's cached tokens.

    Args:
        query: `[T, heads, head_dim]`.
        key_cache, value_cache: `[blocks, block_size, kv_heads, head_dim]`, this step's tokens already written.
        scale: of the scores.

    Returns:
        `[T, heads, head_dim]` in the query's dtype.
    """
    out = torch.empty_like(query)
    for group in plan.groups:
        _decode(query, key_cache, value_cache, group, scale, out)
    for prefill in plan.prefills:
        _prefill(query, key_cache, value_cache, prefill, plan.window, scale, out)
    return out


def _decode(query: Tensor, key_cache: Tensor, value_cache: Tensor, g: DecodeGroup, scale: float, out: Tensor) -> None:
    """Write the outputs of one group into its rows of `out`."""
    num_kv, dim = key_cache.shape[2:]
    keys, values = (
        cache.index_select(0, g.blocks).view(g.num_sequences, -1, num_kv, dim)[:, g.skip : g.skip + g.length].float()
        for cache in (key_cache, value_cache)
    )  # [S, L, kv_heads, D]
    queries = query.index_select(0, g.rows).float().mul_(scale).view(g.num_sequences, num_kv, -1, dim)
    scores = torch.matmul(queries, keys.permute(0, 2, 3, 1))  # [S, kv_heads, group, L]
    if g.invalid is not None:
        scores.masked_fill_(g.invalid, float("-inf"))
        values.masked_fill_(g.invalid.view(g.num_sequences, g.length, 1, 1), 0.0)  # 0 * NaN would be NaN
    mixed = torch.matmul(torch.softmax(scores, -1), values.transpose(1, 2))  # [S, kv_heads, group, D]
    out.index_copy_(0, g.rows, mixed.reshape(g.num_sequences, *query.shape[1:]).to(out.dtype))


def _prefill(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, p: Prefill, window: int | None, scale: float, out: Tensor
) -> None:
    """Write the outputs of one sequence with several query tokens into its rows of `out`, some rows at a time."""
    num_kv, dim = key_cache.shape[2:]
    heads = query.shape[1]
    keys, values = (
        cache.index_select(0, p.blocks).view(-1, num_kv, dim)[: p.seq_len].float().transpose(0, 1)
        for cache in (key_cache, value_cache)
    )  # [kv_heads, L, D]
    first = p.seq_len - p.num_queries  # position of the first query token
    step = max(1, SCORE_ELEMENTS // (heads * p.seq_len))
    for start in range(0, p.num_queries, step):
        count = min(step, p.num_queries - start)
        rows = slice(p.row + start, p.row + start + count)
        low = max(0, first + start - window + 1) if window else 0
        high = first + start + count  # keys [low, high) are seen by some token of these rows
        queries = query[rows].float().mul(scale).view(count, num_kv, -1, dim).permute(1, 2, 0, 3)  # [kv, group, n, D]
        scores = torch.matmul(queries.reshape(num_kv, -1, dim), keys[:, low:high].transpose(1, 2))
        masked = _future_or_past_window(first + start, count, low, high, window, query.device)  # [n, high - low]
        scores = scores.view(num_kv, -1, count, high - low).masked_fill_(masked, float("-inf"))
        weights = torch.softmax(scores, -1).view(num_kv, -1, high - low)
        mixed = torch.matmul(weights, values[:, low:high]).view(num_kv, -1, count, dim)
        out[rows] = mixed.permute(2, 0, 1, 3).reshape(count, heads, dim).to(out.dtype)


def _future_or_past_window(
    first: int, count: int, low: int, high: int, window: int | None, device: torch.device
) -> Tensor:
    """`[count, high - low]` bool: keys at positions low.. that queries at positions first.. must not see."""
    queries = torch.arange(first, first + count, device=device)[:, None]
    keys = torch.arange(low, high, device=device)
    masked = keys > queries
    return masked | (keys <= queries - window) if window else masked
