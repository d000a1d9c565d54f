"""The oracle's latent attention (MLA, DeepSeek-V2 2024, section 2.1) around paged attention.

Keys and values of all heads are made from one latent of a token, k_h = U_h c and v_h = V_h c, beside a rotated part of
the key that heads share. Since q_h · U_h c = (U_hᵀ q_h) · c, queries are absorbed through U_h and what attention mixes
goes through V_h: the cache keeps latents alone, and attention is that of one KV head.
"""

import torch
from torch import Tensor

from moesaic.kernels.reference_attention import KVCache, rotate, write_kv
from moesaic.kernels.reference_norm import rms_norm


def head_linear(x: Tensor, weights: Tensor, room: int = 0) -> Tensor:
    """Each head's product with its own matrix: `[T, H, K]`, `[H, N, K]` -> `[T, H, N + room]` in x's dtype.

    Args:
        x: some numbers of wider heads, perhaps.
        room: numbers behind each head's that are left unwritten.
    """
    num_tokens, heads, _ = x.shape
    out = x.new_empty(num_tokens, heads, weights.shape[1] + room)
    out[..., : weights.shape[1]] = torch.bmm(x.transpose(0, 1), weights.transpose(1, 2)).transpose(0, 1)
    return out


def prepare_latent(
    query: Tensor,
    rotary: Tensor,
    key: Tensor,
    norm: Tensor,
    table: Tensor | None,
    slots: Tensor,
    cache: KVCache,
    *,
    eps: float,
    interleaved: bool = False,
) -> Tensor:
    """What happens between the projections and attention: norm of the latent → rotation → write to the cache.

    Args:
        query: `[T, heads, L + R]`, absorbed queries of L numbers; the R behind them are written.
        rotary: `[T, heads, R]`, what they become of; some numbers of wider heads, perhaps.
        key: `[T, L + R]`, latent and the part of the key that heads share.
        norm: `[L]`, weights of the latent's RMS norm.
        table: `[T, R]` of `rope_table`; None: nothing rotates.
        slots: `[T]` int64, where latents go.
        cache: latent; written.
        interleaved: as in `rotate`.

    Returns:
        The query.
    """
    latent = norm.shape[0]
    normed = rms_norm(key[:, :latent], norm, eps)
    shared = key[:, None, latent:]  # [T, 1, R]
    if table is not None:
        rotary, shared = rotate(rotary, table, 0, interleaved), rotate(shared, table, 0, interleaved)
    query[..., latent:] = rotary
    write_kv(cache, torch.cat((normed[:, None], shared), -1), None, slots)
    return query
