"""Latent attention in C++ against the oracle: heads' own products in every format, what is written of a token, and the
same bits alone as in a batch."""

import pytest
import torch

from moesaic.core.formats import WeightFormat
from moesaic.kernels import reference_attention
from moesaic.kernels import reference_latent as oracle
from moesaic.kernels.cpu import attention, latent
from moesaic.kernels.cpu.packed import PackedMatrix, Split
from moesaic.kernels.kv_cache import KVCacheSpec

FORMATS = {
    "f32": WeightFormat("f32"),
    "bf16": WeightFormat("bf16"),
    "w8": WeightFormat("w8", 32),
    "w4": WeightFormat("w4", 32, True),
}
# Of the largest output. bf16 weights may meet bf16 activations, and codes have errors that heads' matrices share.
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "w8": 2e-3, "w4": 2e-3}

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def heads_of(weights, format):
    return latent.PackedHeads([PackedMatrix.of(weight, format) for weight in weights])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(1, 3, 64, 32), (3, 2, 40, 24), (130, 1, 33, 200)], ids=str)
def test_head_linear(shape, kind):
    num_tokens, heads, size, cols = shape
    wide = torch.randn(num_tokens, heads, cols + 5)
    x = wide[..., 3 : 3 + cols]
    packed = heads_of(torch.randn(heads, size, cols), FORMATS[kind])
    weights = torch.stack([matrix.unpack() for matrix in packed.matrices])
    expected = oracle.head_linear(x, weights)
    out = latent.head_linear(x, packed, room=7)
    assert out.shape == (num_tokens, heads, size + 7)
    assert (out[..., :size] - expected).abs().max() <= TOLERANCE[kind] * expected.abs().max()
    for t in (0, num_tokens - 1):
        assert torch.equal(latent.head_linear(x[t : t + 1], packed), out[t : t + 1, :, :size])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("options", [{}, {"interleaved": True}, {"table": None}], ids=str)
def test_prepare_latent(dtype, options):
    num_tokens, heads, size, rotary = 19, 3, 32, 6
    spec = KVCacheSpec(1, size + rotary, dtype, value_dim=size, latent=True, tiled=True)
    plain = KVCacheSpec(1, size + rotary, dtype, value_dim=size, latent=True)
    caches = attention.new_cache(spec, 4, 16), reference_attention.new_cache(plain, 4, 16)
    slots = torch.randperm(64)[:num_tokens]
    table = reference_attention.rope_table(torch.arange(num_tokens), torch.rand(rotary // 2))
    wide, key, norm = torch.randn(num_tokens, heads, 20), torch.randn(num_tokens, size + rotary), torch.randn(size)
    absorbed = torch.randn(num_tokens, heads, size + rotary)
    queries = []
    for module, cache in ((latent, caches[0]), (oracle, caches[1])):
        query = absorbed.clone()
        arguments = {"table": table, "slots": slots, "cache": cache, "eps": 1e-3} | options
        given = module.prepare_latent(query, wide[..., 14:], key, norm, **arguments)
        assert given.data_ptr() == query.data_ptr()
        queries.append(query)
    torch.testing.assert_close(*queries, rtol=1e-5, atol=1e-6)
    assert torch.equal(queries[0][..., :size], absorbed[..., :size])
    tokens = caches[1].key.flatten(0, 1)[slots].float()
    if dtype is torch.int8:
        tokens = tokens * caches[1].key_scale.flatten(0, 1)[slots][..., None]
    assert stored(caches[0], slots, size + rotary).sub(tokens[:, 0]).abs().max() < 1e-2 * tokens.abs().max()


def stored(cache, slots, dim):
    """Tokens of a tiled latent cache `[T, dim]`, by its layout (csrc/kernels/kv_layout.h)."""
    paired = cache.spec.dtype is torch.bfloat16
    rows = []
    for slot in slots.tolist():
        block, t = cache.data[slot // 16], slot % 16
        elements = block[: dim * 16 * cache.spec.dtype.itemsize].view(cache.spec.dtype)
        tile = elements.view(dim // 2, 16, 2).transpose(1, 2).flatten(0, 1) if paired else elements.view(dim, 16)
        scale = 1.0
        if cache.spec.dtype is torch.int8:
            at = -(-dim * 16 // 64) * 64
            scale = block[at : at + 64].view(torch.float32)[t]
        rows.append(tile[:, t].float() * scale)
    return torch.stack(rows)


def test_a_split_sink_fills_both_matrices():
    weight = torch.randn(7, 40)
    first, second = (PackedMatrix.empty(*shape, WeightFormat("f32")) for shape in ((40, 3), (4, 40)))
    sink = Split(first.sink(), second.sink())
    assert sink.shape == (7, 40) and sink.rows(0, 7) is sink
    sink.fill(weight.double())
    assert torch.equal(first.unpack(), weight[:3].T) and torch.equal(second.unpack(), weight[3:])
    assert sink.holds(weight) and not sink.holds(weight + 1)
    with pytest.raises(ValueError, match="filled at once"):
        sink.rows(0, 3)


def test_what_does_not_fit_is_refused():
    packed = heads_of(torch.randn(2, 8, 4), FORMATS["f32"])
    cache = attention.new_cache(KVCacheSpec(1, 20, torch.float32, value_dim=16, latent=True, tiled=True), 1, 16)
    query, rotary, key, norm = torch.randn(1, 2, 20), torch.randn(1, 2, 4), torch.randn(1, 20), torch.ones(16)
    slots = torch.zeros(1, dtype=torch.int64)
    for call in (
        lambda: latent.head_linear(torch.randn(1, 3, 4), packed),
        lambda: latent.head_linear(torch.randn(1, 2, 5), packed),
        lambda: latent.head_linear(torch.randn(4, 2, 1).transpose(0, 2), packed),
        lambda: latent.PackedHeads([PackedMatrix.of(torch.randn(8, n), FORMATS["f32"]) for n in (4, 5)]),
        lambda: latent.prepare_latent(query, rotary[..., :3], key, norm, None, slots, cache, eps=1e-6),
        lambda: latent.prepare_latent(query, rotary, key, norm, torch.ones(2, 4), slots, cache, eps=1e-6),
        lambda: latent.prepare_latent(query[..., :19], rotary[..., :3], key[:, :19], norm, None, slots, cache, eps=0),
    ):
        with pytest.raises(ValueError, match="heads|one shape|expected|the cache is for"):
            call()
