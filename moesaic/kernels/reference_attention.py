"""The oracle's attention over a paged cache: plan once a step, run once a layer.

Contract of the cache: key and value are `[blocks, block_size, kv_heads, head_dim]`; token p of a sequence lies in
block `table[p // block_size]` at offset `p % block_size`. Slots that hold no token of a sequence may hold anything,
NaN too: they are never read for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.core.batch import Batch

# Sequences with one query token are computed together while the keys and values gathered for them stay this small:
# beyond the processor's cache, one sequence at a time is faster.
GROUP_BYTES = 2 << 20
# A longer query is cut so that its scores have about this many elements (2 MiB stay in the cache, and keys that none of
# a piece's queries sees are left out), but not into fewer rows than a product is worth.
SCORE_ELEMENTS = 1 << 19
LEAST_ROWS = 64


@dataclass
class Group:
    """S sequences with one query token each, computed together, each over its last L tokens.

    Attributes:
        rows: `[S]` int64, their rows in the batch.
        gather: `[S * kv_heads * L]` int64, rows of the cache seen as `[slots * kv_heads, head_dim]`. Sequences with
            fewer than L tokens repeat their last one, so that nothing but their own tokens is ever read.
        padding: `[S, 1, L]` bool, the repeated tokens; None when all are L long.
    """

    rows: Tensor
    gather: Tensor
    padding: Tensor | None


@dataclass
class Single:
    """One sequence with any number of query tokens: rows [row, row + num_queries), the last of its tokens.

    Attributes:
        blocks: `[n]` int64, from the first that holds a token to be seen.
        skip: tokens in these blocks that none of the queries sees.
        length: tokens after these.
    """

    row: int
    num_queries: int
    blocks: Tensor
    skip: int
    length: int


@dataclass
class AttentionPlan:
    """What all layers with the same window share in a step."""

    window: int | None
    groups: list[Group]
    singles: list[Single]


def plan_attention(batch: Batch, key_cache: Tensor, window: int | None) -> AttentionPlan:
    """Sort the step's sequences into groups, for all layers whose caches have the shape and dtype of `key_cache`.

    Args:
        window: tokens that a token sees, itself included; None for all.
    """
    block_size, num_kv, dim = key_cache.shape[1:]
    token_bytes = 2 * num_kv * dim * key_cache.itemsize
    plan = AttentionPlan(window, [], [])
    waiting: list[tuple[int, int, int]] = []  # length, sequence, row; of sequences with one query token
    row = 0
    for s, (num_queries, seq_len) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        if num_queries == 1:
            waiting.append((seq_len, s, row))
        else:
            plan.singles.append(_single(batch, block_size, window, s, row, num_queries, seq_len))
        row += num_queries
    waiting.sort()  # by length, so that little is padded
    while waiting:
        members = [waiting.pop()]
        span = min(members[0][0], window or members[0][0]) * token_bytes
        while waiting and (len(members) + 1) * span <= GROUP_BYTES:
            members.append(waiting.pop())
        if len(members) == 1:
            seq_len, s, row = members[0]
            plan.singles.append(_single(batch, block_size, window, s, row, 1, seq_len))
        else:
            plan.groups.append(_group(batch, block_size, num_kv, window, members))
    return plan


def _single(
    batch: Batch, block_size: int, window: int | None, s: int, row: int, num_queries: int, seq_len: int
) -> Single:
    """Sequence s of the batch by itself."""
    first = max(0, seq_len - num_queries + 1 - window) if window else 0  # the first token that a query sees
    block = first // block_size
    blocks = batch.block_tables[batch.table_rows_host[s], block : -(-seq_len // block_size)]
    return Single(row, num_queries, blocks, first - block * block_size, seq_len - first)


def _group(
    batch: Batch, block_size: int, num_kv: int, window: int | None, members: list[tuple[int, int, int]]
) -> Group:
    """The gather for sequences (length, sequence, row) of one query token each, the longest first."""
    device = batch.block_tables.device
    lengths, sequences, rows = torch.tensor(members, device=device).T[:, :, None]  # each [S, 1]
    seen = min(members[0][0], window or members[0][0])  # L
    starts = (lengths - seen).clamp_(min=0)  # where a window begins; 0 for those that are shorter than L
    positions = starts + torch.arange(seen, device=device)  # [S, L]
    padding = (positions >= lengths)[:, None] if members[-1][0] < seen else None
    positions = torch.minimum(positions, lengths - 1)
    blocks = batch.block_tables[batch.table_rows[sequences], positions // block_size]
    slots = blocks * block_size + positions % block_size
    heads = torch.arange(num_kv, device=device)[:, None]
    gather = slots[:, None] * num_kv + heads  # [S, kv_heads, L]
    return Group(rows[:, 0], gather.flatten(), padding)


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
        _attend_group(query, key_cache, value_cache, group, scale, out)
    for single in plan.singles:
        _attend_single(query, key_cache, value_cache, single, plan.window, scale, out)
    return out


def _attend_group(query: Tensor, key_cache: Tensor, value_cache: Tensor, g: Group, scale: float, out: Tensor) -> None:
    """Write the outputs of one group into its rows of `out`."""
    num_kv, dim = key_cache.shape[2:]
    pairs = g.rows.shape[0] * num_kv  # of a sequence and a KV head
    keys = key_cache.view(-1, dim).index_select(0, g.gather).view(pairs, -1, dim).float()  # [S * kv_heads, L, D]
    values = value_cache.view(-1, dim).index_select(0, g.gather).view(pairs, -1, dim).float()
    queries = (query.index_select(0, g.rows).float() * scale).view(pairs, -1, dim)
    scores = torch.bmm(queries, keys.transpose(1, 2))  # [S * kv_heads, heads / kv_heads, L]
    if g.padding is not None:
        scores.view(g.rows.shape[0], -1, keys.shape[1]).masked_fill_(g.padding, float("-inf"))
    mixed = torch.bmm(torch.softmax(scores, -1), values)  # [S * kv_heads, heads / kv_heads, D]
    out.index_copy_(0, g.rows, mixed.view(-1, *query.shape[1:]).to(out.dtype))


def _attend_single(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, s: Single, window: int | None, scale: float, out: Tensor
) -> None:
    """Write the outputs of one sequence into its rows of `out`, some rows at a time."""
    num_kv, dim = key_cache.shape[2:]
    keys = key_cache.index_select(0, s.blocks).view(-1, num_kv, dim).narrow(0, s.skip, s.length).float()
    values = value_cache.index_select(0, s.blocks).view(-1, num_kv, dim).narrow(0, s.skip, s.length).float()
    keys, values = keys.permute(1, 2, 0), values.transpose(0, 1)  # [kv_heads, D, L], [kv_heads, L, D]
    if s.num_queries == 1:  # sees all of them
        queries = (query[s.row].float() * scale).view(num_kv, -1, dim)
        mixed = torch.bmm(torch.softmax(torch.bmm(queries, keys), -1), values)  # [kv_heads, heads / kv_heads, D]
        out[s.row] = mixed.view(-1, dim)
        return
    before = s.length - s.num_queries  # keys before the first query's own
    step = max(LEAST_ROWS, SCORE_ELEMENTS // (query.shape[1] * s.length))
    for start in range(0, s.num_queries, step):
        count = min(step, s.num_queries - start)
        rows = slice(s.row + start, s.row + start + count)
        low = max(0, before + start - window + 1) if window else 0
        high = before + start + count  # keys [low, high) are seen by some query of these rows
        queries = (query[rows].float() * scale).view(count, num_kv, -1, dim).permute(1, 2, 0, 3)
        scores = torch.bmm(queries.reshape(num_kv, -1, dim), keys[:, :, low:high])  # [kv_heads, group * n, L]
        hidden = _unseen(before + start, count, low, high, window, query.device)  # [n, L]
        scores = scores.view(num_kv, -1, count, high - low).masked_fill_(hidden, float("-inf"))
        weights = torch.softmax(scores, -1).view(num_kv, -1, high - low)
        mixed = torch.bmm(weights, values[:, low:high]).view(num_kv, -1, count, dim)
        out[rows] = mixed.permute(2, 0, 1, 3).reshape(count, -1, dim)


def _unseen(first: int, count: int, low: int, high: int, window: int | None, device: torch.device) -> Tensor:
    """`[count, high - low]` bool: keys low.. that queries whose own keys are first.. must not see."""
    own = torch.arange(first, first + count, device=device)[:, None]
    keys = torch.arange(low, high, device=device)
    return (keys > own) | (keys <= own - window) if window else keys > own
