"""The floor of a step, counted by hand on a model small enough for it."""

from dataclasses import replace

import pytest

from moesaic.core.formats import WeightFormat
from moesaic.models.floor import (
    Formats,
    Work,
    decode,
    expected_distinct,
    floor_seconds,
    matrix_bytes,
    prefill,
    step_bytes,
    step_operations,
    weight_bytes,
)
from moesaic.models.spec import (
    AttentionSpec,
    DenseSpec,
    IndexerSpec,
    LatentAttentionSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RopeSpec,
    RouterSpec,
    ShortConvSpec,
)

HIDDEN, VOCAB, INNER, EXPERTS, TOP = 8, 32, 4, 4, 2
BF16 = WeightFormat("bf16")
PLAIN = Formats(experts=BF16, dense=BF16, head=BF16, router=BF16, kv_bytes=2)
NORMS = 2 * HIDDEN * 4  # of a layer, in fp32


def model(*ffns, window=None) -> ModelSpec:
    attention = AttentionSpec(
        num_heads=2, num_kv_heads=1, head_dim=4, scale=1.0, rope=RopeSpec(theta=1e4), window=window
    )
    return ModelSpec(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        max_position_embeddings=64,
        norm=NormSpec(eps=1e-6),
        tied_embeddings=False,
        layers=tuple(LayerSpec(attention=attention, ffn=ffn) for ffn in ffns),
    )


MOE = MoESpec(num_experts=EXPERTS, intermediate_size=INNER, router=RouterSpec(top_k=TOP))
DENSE = DenseSpec(intermediate_size=INNER)
PROJECTIONS = HIDDEN * (8 + 4 + 4) + 8 * HIDDEN  # q, k, v, output
EXPERT = 3 * HIDDEN * INNER


def test_a_token_reads_its_experts_and_its_keys() -> None:
    spec = model(MOE)
    weights = 2 * (VOCAB * HIDDEN + PROJECTIONS + EXPERTS * HIDDEN + TOP * EXPERT) + NORMS
    keys = 2 * 2 * 4 * 10  # key and value, 2 bytes, one head of 4, a context of 10
    assert step_bytes(spec, PLAIN, decode(1, 10)) == pytest.approx(weights + keys)


def test_counted_experts_replace_expected_ones() -> None:
    spec = model(MOE, MOE)
    few, many = (Work(chunks=[(0, 1)] * 3, rows=3, distinct=[n, 2]) for n in (2, 4))
    assert step_bytes(spec, PLAIN, many) - step_bytes(spec, PLAIN, few) == pytest.approx(2 * 2 * EXPERT)


def test_a_window_bounds_what_is_read_and_multiplied() -> None:
    spec, wide = model(DENSE, window=3), model(DENSE)
    assert step_bytes(wide, PLAIN, decode(1, 10)) - step_bytes(spec, PLAIN, decode(1, 10)) == 2 * 2 * 4 * (10 - 3)
    # a chunk of 2 after 4: the first token sees positions 2 to 4, the second 3 to 5
    assert step_bytes(spec, PLAIN, Work(chunks=[(4, 2)], rows=1)) == step_bytes(wide, PLAIN, decode(1, 4))
    assert step_operations(wide, prefill(1, 4)) - step_operations(spec, prefill(1, 4)) == 2 * 2 * 8 * (10 - 9)


def test_operations_grow_with_tokens_and_rows() -> None:
    spec = model(MOE, DENSE)
    each = 2 * PROJECTIONS + HIDDEN * EXPERTS + TOP * EXPERT + EXPERT
    pairs = 2 * (1 + 2 + 3)  # both layers, a prompt of 3
    wanted = 2 * (VOCAB * HIDDEN + 3 * each + 2 * 8 * pairs)
    assert step_operations(spec, prefill(1, 3)) == pytest.approx(wanted)


def test_the_longer_of_bytes_and_operations_is_the_floor() -> None:
    spec, work = model(MOE), decode(2, 5)
    count, operations = step_bytes(spec, PLAIN, work), step_operations(spec, work)
    assert floor_seconds(spec, PLAIN, work, stream=count, peak=1e12) == pytest.approx(1.0)
    assert floor_seconds(spec, PLAIN, work, stream=1e12, peak=operations / 2) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("format", "bits"),
    [
        (WeightFormat("f32"), 32),
        (WeightFormat("w8", 128), 8 + 16 / 128),
        (WeightFormat("w8", 0), 8 + 16 / 256),
        (WeightFormat("w4", 64, offsets=True), 4 + 32 / 64),
        (WeightFormat("w8a8", 32), 8 + 16 / 32),
    ],
    ids=str,
)
def test_scales_and_offsets_count(format: WeightFormat, bits: float) -> None:
    assert matrix_bytes(format, 10, 256) == pytest.approx(10 * 256 * bits / 8)


def test_uniform_routing() -> None:
    assert expected_distinct(64, 8, 1) == pytest.approx(8)
    assert expected_distinct(64, 8, 2) == pytest.approx(8 + 8 * 56 / 64)
    assert expected_distinct(64, 8, 1000) == pytest.approx(64)


def test_all_weights() -> None:
    spec = model(MOE, DENSE)
    every = VOCAB * HIDDEN * 2 + 2 * PROJECTIONS + HIDDEN * EXPERTS + EXPERTS * EXPERT + EXPERT
    assert weight_bytes(spec, PLAIN) == pytest.approx(2 * every + 2 * NORMS)


def test_latent_attention_reads_latents_and_multiplies_with_each_head():
    latent = LatentAttentionSpec(
        num_heads=2, latent_dim=4, key_dim=3, rope_dim=2, value_dim=5, query_rank=6, scale=1.0, rope=None
    )
    plain = model(DENSE)
    spec = replace(plain, layers=(LayerSpec(attention=latent, ffn=DENSE),))
    projections = HIDDEN * 6 + 6 * 2 * 5 + HIDDEN * 6 + 4 * 2 * (3 + 5) + 2 * 5 * HIDDEN
    assert latent.num_parameters(HIDDEN) == projections + 6 + 4  # norms of both latents
    small = 4 * (6 + 4) + NORMS
    weights = 2 * (VOCAB * HIDDEN + projections + EXPERT) + small
    assert step_bytes(spec, PLAIN, decode(1, 10)) == pytest.approx(weights + 2 * 10 * (4 + 2))
    products = VOCAB * HIDDEN + projections + EXPERT + 10 * 2 * (4 + 2 + 4)
    assert step_operations(spec, decode(1, 10)) == pytest.approx(2 * products)


def test_a_recurrent_layer_reads_and_writes_its_state_whatever_the_context() -> None:
    spec = model(DENSE)
    spec = replace(spec, layers=(replace(spec.layers[0], attention=ShortConvSpec(width=3)),))
    short, long = (step_bytes(spec, replace(PLAIN, state_bytes=24), decode(2, context)) for context in (2, 40))
    matrices, conv = VOCAB * HIDDEN + 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER, 3 * HIDDEN * 4
    assert short == long == 2 * matrices + conv + NORMS + 2 * 2 * 24
    assert step_operations(spec, decode(2, 40)) == 2 * 2 * matrices


def test_a_layer_may_be_a_mixer_or_a_feed_forward_alone() -> None:
    both = model(DENSE)
    layer = both.layers[0]
    split = replace(both, layers=(replace(layer, ffn=None), replace(layer, attention=None)))
    for work in (decode(2, 40), prefill(1, 30)):
        assert step_bytes(split, PLAIN, work) == step_bytes(both, PLAIN, work)
        assert step_operations(split, work) == step_operations(both, work)
    assert split.num_parameters == both.num_parameters and split.num_active_parameters == both.num_active_parameters


def test_an_indexer_looks_at_all_and_chooses_some():
    latent = LatentAttentionSpec(
        num_heads=2,
        latent_dim=4,
        key_dim=3,
        rope_dim=2,
        value_dim=5,
        query_rank=6,
        scale=1.0,
        rope=None,
        indexer=IndexerSpec(num_heads=3, head_dim=7, top_k=4),
    )
    shared = replace(latent, indexer=replace(latent.indexer, source="last"))
    plain = replace(latent, indexer=None)
    own, last, dense = (
        replace(model(DENSE), layers=(LayerSpec(attention=attention, ffn=DENSE),))
        for attention in (latent, shared, plain)
    )
    projections = 3 * 7 * 6 + 7 * HIDDEN + 3 * HIDDEN
    assert latent.num_parameters(HIDDEN) - plain.num_parameters(HIDDEN) == projections + 2 * 7
    assert shared.num_parameters(HIDDEN) == plain.num_parameters(HIDDEN)
    step = decode(1, 10)
    assert step_bytes(dense, PLAIN, step) - step_bytes(last, PLAIN, step) == pytest.approx(2 * 6 * (10 - 4))
    own_bytes = 2 * (projections + 10 * 7) + 4 * 2 * 7
    assert step_bytes(own, PLAIN, step) - step_bytes(last, PLAIN, step) == pytest.approx(own_bytes)
    fewer = 2 * 2 * (6 + 4) * (10 - 4)
    assert step_operations(dense, step) - step_operations(last, step) == pytest.approx(fewer)
    more = 2 * (projections + 3 * 7 * 10)
    assert step_operations(own, step) - step_operations(last, step) == pytest.approx(more)


def test_experts_between_projections_are_narrower() -> None:
    moe = replace(MOE, latent_size=6)
    plain, narrow = (step_bytes(model(ffn), PLAIN, decode(1, 10)) for ffn in (MOE, moe))
    assert plain - narrow == pytest.approx(2 * (TOP * 3 * (HIDDEN - 6) * INNER - 2 * 6 * HIDDEN))
    fewer = 3 * EXPERTS * (HIDDEN - 6) * INNER - 2 * 6 * HIDDEN
    assert MOE.num_parameters(HIDDEN) - moe.num_parameters(HIDDEN) == fewer
