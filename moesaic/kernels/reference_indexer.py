"""The oracle's sparse indexer (DeepSeek-V3.2 2025, section 2.1): which positions a token's attention sees, and
attention to these alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.kernels.reference_attention import KVCache, rotate, write_kv


@dataclass
class Selection:
    """The positions that each of the step's tokens sees.

    Attributes:
        positions: `[T, top_k]` int32, the first `counts` of a row in rising order; the others mean nothing.
        counts: `[T]` int64.
        tables: `[T]` int64, the row of the block tables of each token's sequence.
    """

    positions: Tensor
    counts: Tensor
    tables: Tensor


def prepare_index(
    query: Tensor, key: Tensor, table: Tensor | None, slots: Tensor, cache: KVCache, interleaved: bool = False
) -> Tensor:
    """Rotate the indexer's queries and keys, and write the keys to its cache.

    Args:
        query: `[T, heads, D]`.
        key: `[T, D]`, normed.
        table: `[T, R]` of `rope_table`: the first R numbers rotate; None: none does.
        slots: `[T]` int64, where keys go.
        cache: of one head, without values; written.

    Returns:
        The queries.
    """
    shared = key[:, None]
    if table is not None:
        query, shared = rotate(query, table, 0, interleaved), rotate(shared, table, 0, interleaved)
    write_kv(cache, shared, None, slots)
    return query


def select_positions(query: Tensor, weights: Tensor, cache: KVCache, batch: Batch, top_k: int) -> Selection:
    """The top_k positions that each token scores highest, or all that it sees where these are no more.

    The score of position s is the sum over heads h of `weights[t, h] * relu(query[t, h] · key[s])`, in fp32. Among
    equal scores the lower position is taken; NaN is no score.

    Args:
        query: `[T, heads, D]`.
        weights: `[T, heads]`. A positive factor on all of them changes nothing.
        cache: this step's keys already written.
    """
    num_tokens, device = query.shape[0], query.device
    selection = Selection(
        torch.zeros(num_tokens, top_k, dtype=torch.int32, device=device),
        torch.zeros(num_tokens, dtype=torch.int64, device=device),
        torch.zeros(num_tokens, dtype=torch.int64, device=device),
    )
    row = 0
    for s, (count, length) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        keys = _keys(cache, batch, batch.table_rows_host[s], length)
        for visible in range(length - count + 1, length + 1):
            chosen = torch.arange(visible, device=device)
            if visible > top_k:
                scores = torch.relu(query[row].float() @ keys[:visible].T)  # [heads, visible]
                chosen = _best(weights[row].float() @ scores, top_k)
            selection.positions[row, : len(chosen)] = chosen
            selection.counts[row] = len(chosen)
            selection.tables[row] = batch.table_rows_host[s]
            row += 1
    return selection


def _keys(cache: KVCache, batch: Batch, table: int, length: int) -> Tensor:
    """A sequence's keys `[length, D]` fp32."""
    blocks = batch.block_tables[table, : -(-length // cache.block_size)]
    keys = cache.key.index_select(0, blocks).flatten(0, 1)[:length, 0].float()
    if cache.key_scale is None:
        return keys
    return keys * cache.key_scale.index_select(0, blocks).flatten(0, 1)[:length]


def _best(scores: Tensor, top_k: int) -> Tensor:
    """Where the highest scores are, in rising order."""
    order = torch.where(scores.isnan(), -torch.inf, scores).sort(descending=True, stable=True).indices[:top_k]
    return order[~scores[order].isnan()].sort().values


def selected_attention(query: Tensor, cache: KVCache, batch: Batch, selection: Selection, scale: float) -> Tensor:
    """Attention of each query token to the cached tokens at its selected positions.

    Args:
        query: `[T, heads, D]`.
        cache: latent; this step's tokens already written.
        scale: of the scores.

    Returns:
        `[T, heads, value_dim]` in the query's dtype.
    """
    size = cache.block_size
    out = query.new_empty((*query.shape[:2], cache.value.shape[3]))
    for t, count in enumerate(selection.counts.tolist()):
        positions = selection.positions[t, :count].long()
        slots = batch.block_tables[selection.tables[t], positions // size] * size + positions % size
        keys = cache.key.flatten(0, 1)[slots, 0].float()  # [count, D]
        if cache.key_scale is not None:
            keys = keys * cache.key_scale.flatten(0, 1)[slots]
        shares = torch.softmax(query[t].float() * scale @ keys.T, -1)
        out[t] = shares @ keys[:, : out.shape[2]]
    return out
