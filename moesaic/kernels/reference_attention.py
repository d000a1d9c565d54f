"""The oracle's attention: rotation, the paged cache, what is written to it and how it is attended to.

Contract of the cache: token p of a sequence lies in block `table[p // block_size]` at offset `p % block_size`. Slots
that hold no token of a sequence may hold anything, NaN too: they are never read for it. A step's sequences are planned
once and attended to in every layer.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.kv_cache import KVCacheSpec

WindowKind = Literal["sliding", "chunked"]
Position = TypeVar("Position", int, Tensor)

# Sequences with one query token are computed together while the keys and values gathered for them stay this small:
# beyond the processor's cache, one sequence at a time is faster.
GROUP_BYTES = 2 << 20
# A longer query is cut so that its scores have about this many elements (2 MiB stay in the cache, and keys that none of
# a piece's queries sees are left out), but not into fewer rows than a product is worth.
SCORE_ELEMENTS = 1 << 19
LEAST_ROWS = 64


@dataclass
class KVCache:
    """Keys `[blocks, block_size, kv_heads, head_dim]` and values of all sequences.

    Attributes:
        value: as the key; of a latent cache a view of its first numbers.
        key_scale, value_scale: `[blocks, block_size, kv_heads]` fp32, on the codes of an int8 cache; else None.
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    @property
    def block_size(self) -> int:
        return self.key.shape[1]

    def fill_(self, value: float) -> None:
        """Every number in the cache (of int8, every scale) becomes this; for tests."""
        for part in (self.key, self.value) if self.key_scale is None else (self.key_scale, self.value_scale):
            assert part is not None
            part.fill_(value)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """What a plan depends on: caches with equal keys share one."""
        return self.key.shape, self.value.shape, self.key.dtype

    @property
    def latent(self) -> bool:
        return self.value.data_ptr() == self.key.data_ptr()


def new_cache(spec: KVCacheSpec, num_blocks: int, block_size: int, device: torch.device | str = "cpu") -> KVCache:
    """An empty cache as `spec` says."""
    shape = (num_blocks, block_size, spec.num_kv_heads)
    key = _lazy_zeros((*shape, spec.head_dim), spec.dtype, device)
    scales = [_lazy_zeros(shape, torch.float32, device) if spec.dtype is torch.int8 else None for _ in range(2)]
    if spec.latent:
        return KVCache(key, key[..., : spec.value_size], scales[0], scales[0])
    return KVCache(key, _lazy_zeros((*shape, spec.value_size), spec.dtype, device), *scales)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros. numpy asks the system for zeroed pages, which cost nothing until touched; torch would write them."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def write_kv(cache: KVCache, key: Tensor, value: Tensor | None, slots: Tensor) -> None:
    """Store the step's keys and values `[T, kv_heads, head_dim]` at flat `slots` `[T]` of the cache, in place.

    Args:
        value: None in a latent cache.
    """
    _write(cache.key, cache.key_scale, key, slots)
    if value is not None:
        _write(cache.value, cache.value_scale, value, slots)


def _write(stored: Tensor, scales: Tensor | None, x: Tensor, slots: Tensor) -> None:
    """As they are, or as codes whose scale makes the largest magnitude of a head 127."""
    if scales is not None:
        scale = x.float().abs().amax(-1) / 127  # [T, kv_heads]
        scales.view(-1, x.shape[1]).index_copy_(0, slots, scale)
        x = torch.where(scale[..., None] > 0, x.float() / scale[..., None], 0.0).round()
    stored.view(-1, *x.shape[1:]).index_copy_(0, slots, x.to(stored.dtype))


def rope_table(positions: Tensor, inverse: Tensor, factor: float = 1.0) -> Tensor:
    """Cosines, then sines, of the angles of each position.

    Args:
        positions: `[T]` int64.
        inverse: `[R / 2]` fp32, the angle that a position turns each pair by.
        factor: on cosines and sines.

    Returns:
        `[T, R]` fp32.
    """
    angles = positions[:, None].float() * inverse
    return torch.cat((angles.cos(), angles.sin()), -1) * factor


def query_temperature(positions: Tensor, scale: float, period: int, offset: int = 0, growth: str = "log") -> Tensor:
    """`1 + scale * log(1 + floor((position + offset) / period))`, or, with growth "power",
    `(1 + (position + offset) / period) ** scale`, by which queries grow with the length of what they
    look back on (Nakanishi 2025, as Llama 4 has it): `[T]` int64 -> `[T, 1]` fp32."""
    periods = (positions + offset).float() / period
    if growth == "power":
        return torch.exp(torch.log1p(periods) * scale)[:, None]
    return (torch.log1p(periods.floor()) * scale + 1.0)[:, None]


def rotate(x: Tensor, table: Tensor, start: int = 0, interleaved: bool = False) -> Tensor:
    """Turn pairs of each head by the angles of its token's position.

    Args:
        x: `[T, heads, D]`.
        table: `[T, R]`, as `rope_table` makes it; R <= D numbers rotate, from `start` on.
        interleaved: pairs are neighbours; else number i goes with number i + R / 2.

    Returns:
        `[T, heads, D]` in x's dtype, computed in fp32.
    """
    size = table.shape[1]
    cos, sin = (half[:, None] for half in table.chunk(2, -1))  # [T, 1, R / 2]
    part = x[..., start : start + size].float()
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((x[..., :start], turned.to(x.dtype), x[..., start + size :]), -1)


def prepare_qkv(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor],
    num_heads: int,
    num_kv_heads: int,
    table: Tensor | None,
    slots: Tensor,
    cache: KVCache,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    clip: float | None = None,
    interleaved: bool = False,
    norm_last: bool = False,
) -> Tensor:
    """What happens between the projection and attention: norm → clip → rotate → write keys and values to the cache.

    Args:
        qkv: `[T, heads * D + kv_heads * (D + Dv)]`, queries, keys, values; or these three apart.
        table: `[T, R]` of `rope_table`: the first R numbers of a head rotate; None: none does.
        slots: `[T]` int64, where keys and values go.
        cache: written.
        q_norm, k_norm: weights of RMS norms, `[D]` for one of each head, or as wide as all heads for one of them
            together; None for none.
        clip: bound of absolute values, after the norm.
        interleaved: as in `rotate`.
        norm_last: norms come after the rotation.

    Returns:
        The queries, `[T, heads, D]` in qkv's dtype.
    """
    dim, value_dim = cache.key.shape[3], cache.value.shape[3]
    if isinstance(qkv, Tensor):
        qkv = qkv.split((num_heads * dim, num_kv_heads * dim, num_kv_heads * value_dim), -1)
    query, key, value = qkv
    if not norm_last:
        query, key = _normed(query, q_norm, eps), _normed(key, k_norm, eps)
    if clip is not None:
        query, key, value = (part.clamp(-clip, clip) for part in (query, key, value))
    query_key = torch.cat((query, key), -1).unflatten(1, (-1, dim))  # they rotate together
    if table is not None:
        query_key = rotate(query_key, table, 0, interleaved)
    query, key = query_key.split((num_heads, num_kv_heads), 1)
    if norm_last:
        query = _normed(query.flatten(1), q_norm, eps).unflatten(1, (-1, dim))
        key = _normed(key.flatten(1), k_norm, eps).unflatten(1, (-1, dim))
    write_kv(cache, key, value.unflatten(1, (-1, value_dim)), slots)
    return query


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`[T, heads * D]`, normed in pieces as wide as the weight."""
    if weight is None:
        return x
    return _rms_norm(x.unflatten(1, (-1, weight.shape[0])), weight, eps).flatten(1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


@dataclass
class Group:
    """S sequences with one query token each, computed together, each over its last L tokens at most.

    Attributes:
        rows: `[S]` int64, their rows in the batch.
        gather: `[S * kv_heads * L]` int64, rows of the cache seen as `[slots * kv_heads, head_dim]`. Sequences with
            fewer to see repeat their last one, so that nothing but their own tokens is ever read.
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
        first: position of the token after these.
        length: tokens from there on.
    """

    row: int
    num_queries: int
    blocks: Tensor
    skip: int
    first: int
    length: int


@dataclass
class AttentionPlan:
    """What all layers with the same window share in a step."""

    window: int | None
    kind: WindowKind
    groups: list[Group]
    singles: list[Single]


def first_seen(position: Position, window: int | None, kind: WindowKind) -> Position:
    """The first position that a token sees; below 0 where its window is not full. A window there must be."""
    assert window is not None
    return position - window + 1 if kind == "sliding" else position // window * window


def plan_attention(batch: Batch, cache: KVCache, window: int | None, kind: WindowKind = "sliding") -> AttentionPlan:
    """Sort the step's sequences into groups, for all layers whose caches have the same `shape_key`.

    Args:
        window: tokens that a token sees, itself included; None for all.
        kind: "sliding" for the last ones; "chunked" for those of its own chunk: positions are cut at multiples of the
            window (Llama 4).
    """
    block_size, num_kv, dim = cache.key.shape[1:]
    token_bytes = num_kv * (dim + cache.value.shape[3]) * cache.key.itemsize
    plan = AttentionPlan(window, kind, [], [])
    waiting: list[tuple[int, int, int, int]] = []  # seen, length, sequence, row; of sequences with one query token
    row = 0
    for s, (num_queries, seq_len) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        first = max(0, first_seen(seq_len - num_queries, window, kind)) if window else 0  # that a query sees
        if num_queries == 1:
            waiting.append((seq_len - first, seq_len, s, row))
        else:
            plan.singles.append(_single(batch, block_size, first, s, row, num_queries, seq_len))
        row += num_queries
    waiting.sort()  # by what they see, so that little is padded
    while waiting:
        members = [waiting.pop()]
        span = members[0][0] * token_bytes
        while waiting and (len(members) + 1) * span <= GROUP_BYTES:
            members.append(waiting.pop())
        if len(members) == 1:
            seen, seq_len, s, row = members[0]
            plan.singles.append(_single(batch, block_size, seq_len - seen, s, row, 1, seq_len))
        else:
            plan.groups.append(_group(batch, block_size, num_kv, members))
    return plan


def _single(batch: Batch, block_size: int, first: int, s: int, row: int, num_queries: int, seq_len: int) -> Single:
    """Sequence s of the batch by itself, from the first token on that a query sees."""
    block = first // block_size
    blocks = batch.block_tables[batch.table_rows_host[s], block : -(-seq_len // block_size)]
    return Single(row, num_queries, blocks, first - block * block_size, first, seq_len - first)


def _group(batch: Batch, block_size: int, num_kv: int, members: list[tuple[int, int, int, int]]) -> Group:
    """The gather for sequences (seen, length, sequence, row) of one query token each, those that see most first."""
    device = batch.block_tables.device
    seen, lengths, sequences, rows = torch.tensor(members, device=device).T[:, :, None]  # each [S, 1]
    most = members[0][0]  # L
    positions = lengths - seen + torch.arange(most, device=device)  # [S, L]
    padding = (positions >= lengths)[:, None] if members[-1][0] < most else None
    positions = torch.minimum(positions, lengths - 1)
    blocks = batch.block_tables[batch.table_rows[sequences], positions // block_size]
    slots = blocks * block_size + positions % block_size
    heads = torch.arange(num_kv, device=device)[:, None]
    gather = slots[:, None] * num_kv + heads  # [S, kv_heads, L]
    return Group(rows[:, 0], gather.flatten(), padding)


def paged_attention(
    query: Tensor,
    cache: KVCache,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Causal attention of each query token to its sequence's cached tokens.

    Args:
        query: `[T, heads, head_dim]`.
        cache: this step's tokens already written.
        plan: of the batch, with the layer's window.
        scale: of the scores.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: `[heads]`, a logit of each head that takes weight and gives nothing.
        top_k: a head attends to so many of the keys that it sees, those with the highest scores; among equal ones to
            the earlier. None for all.

    Returns:
        `[T, heads, value_dim]` in the query's dtype.
    """
    out = query.new_empty((*query.shape[:2], cache.value.shape[3]))
    for group in plan.groups:
        _attend_group(query, cache, group, scale, softcap, sinks, top_k, out)
    for single in plan.singles:
        _attend_single(query, cache, single, plan, scale, softcap, sinks, top_k, out)
    return out


def _softmax(scores: Tensor, sinks: Tensor | None, top_k: int | None = None) -> Tensor:
    """Over the last dimension of `[..., heads, n, L]`, or the `top_k` highest there, beside the heads' sinks."""
    if top_k is not None and top_k < scores.shape[-1]:
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
        scores = torch.full_like(scores, float("-inf")).scatter_(-1, best, scores.gather(-1, best))
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, column), -1), -1)[..., :-1]


def _cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh_(scores / softcap).mul_(softcap)


def _attend_group(
    query: Tensor,
    cache: KVCache,
    g: Group,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    top_k: int | None,
    out: Tensor,
) -> None:
    """Write the outputs of one group into its rows of `out`."""
    num_kv, dim = cache.key.shape[2:]
    num_seqs, heads = g.rows.shape[0], query.shape[1]
    pairs = num_seqs * num_kv  # of a sequence and a KV head
    keys = _heads(cache.key, cache.key_scale, g.gather).view(pairs, -1, dim)  # [S * kv_heads, L, D]
    values = _heads(cache.value, cache.value_scale, g.gather).view(pairs, -1, cache.value.shape[3])
    queries = (query.index_select(0, g.rows).float() * scale).view(pairs, -1, dim)
    scores = _cap(torch.bmm(queries, keys.transpose(1, 2)), softcap)  # [S * kv_heads, heads / kv_heads, L]
    if g.padding is not None:
        scores.view(num_seqs, -1, keys.shape[1]).masked_fill_(g.padding, float("-inf"))
    weights = _softmax(scores.view(num_seqs, heads, 1, -1), sinks, top_k).view_as(scores)
    out.index_copy_(0, g.rows, torch.bmm(weights, values).view(num_seqs, heads, -1).to(out.dtype))


def _heads(stored: Tensor, scales: Tensor | None, index: Tensor) -> Tensor:
    """Rows of the cache seen as `[slots * kv_heads, D]`, in fp32."""
    rows = stored.reshape(-1, stored.shape[3]).index_select(0, index).float()
    return rows if scales is None else rows * scales.view(-1, 1).index_select(0, index)


def _tokens(stored: Tensor, scales: Tensor | None, s: Single) -> Tensor:
    """`[length, kv_heads, D]` fp32, the tokens of one sequence."""
    tokens = stored.index_select(0, s.blocks).flatten(0, 1).narrow(0, s.skip, s.length).float()
    if scales is None:
        return tokens
    return tokens * scales.index_select(0, s.blocks).flatten(0, 1).narrow(0, s.skip, s.length)[..., None]


def _attend_single(
    query: Tensor,
    cache: KVCache,
    s: Single,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    top_k: int | None,
    out: Tensor,
) -> None:
    """Write the outputs of one sequence into its rows of `out`, some rows at a time."""
    num_kv, dim = cache.key.shape[2:]
    heads, value_dim = query.shape[1], cache.value.shape[3]
    keys = _tokens(cache.key, cache.key_scale, s).permute(1, 2, 0)  # [kv_heads, D, L]
    values = _tokens(cache.value, cache.value_scale, s).transpose(0, 1)  # [kv_heads, L, D]
    if s.num_queries == 1:  # sees all of them
        queries = (query[s.row].float() * scale).view(num_kv, -1, dim)
        scores = _cap(torch.bmm(queries, keys), softcap)
        weights = _softmax(scores.view(heads, 1, -1), sinks, top_k).view_as(scores)
        out[s.row] = torch.bmm(weights, values).view(-1, value_dim)  # [kv_heads, heads / kv_heads, D]
        return
    before = s.length - s.num_queries  # keys before the first query's own
    step = max(LEAST_ROWS, SCORE_ELEMENTS // (heads * s.length))
    for start in range(0, s.num_queries, step):
        count = min(step, s.num_queries - start)
        rows = slice(s.row + start, s.row + start + count)
        low = _first_key(before + start, s, plan)
        high = before + start + count  # keys [low, high) are seen by some query of these rows
        queries = (query[rows].float() * scale).view(count, num_kv, -1, dim).permute(1, 2, 0, 3)
        scores = torch.bmm(queries.reshape(num_kv, -1, dim), keys[:, :, low:high])  # [kv_heads, group * n, L]
        hidden = _unseen(before + start, count, low, high, s, plan, query.device)  # [n, L]
        scores = _cap(scores, softcap).view(heads, count, high - low).masked_fill_(hidden, float("-inf"))
        weights = _softmax(scores, sinks, top_k).view(num_kv, -1, high - low)
        mixed = torch.bmm(weights, values[:, low:high]).view(num_kv, -1, count, value_dim)
        out[rows] = mixed.permute(2, 0, 1, 3).reshape(count, heads, value_dim)


def _first_key(own: int, s: Single, plan: AttentionPlan) -> int:
    """The first of the sequence's keys that the query sees whose own key is number `own` of them."""
    return max(0, first_seen(own + s.first, plan.window, plan.kind) - s.first) if plan.window else 0


def _unseen(
    first: int, count: int, low: int, high: int, s: Single, plan: AttentionPlan, device: torch.device
) -> Tensor:
    """`[count, high - low]` bool: keys low.. that queries whose own keys are first.. must not see."""
    own = torch.arange(first, first + count, device=device)[:, None]
    keys = torch.arange(low, high, device=device)
    if plan.window is None:
        return keys > own
    return (keys > own) | (keys < first_seen(own + s.first, plan.window, plan.kind) - s.first)
