"""The parameters of what mixes tokens: attention of every kind, recurrence and convolutions. Torch-free."""

from collections.abc import Iterator

from moesaic.models.parameters.feed_forward import experts, router
from moesaic.models.parameters.kept import Kept, Matrix, Vector, convolution, linear, merged, norm_weights, whole
from moesaic.models.spec import (
    AttentionSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    GatedDeltaSpec,
    IndexerSpec,
    LatentAttentionSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MixerSpec,
    NormSpec,
    ShortConvSpec,
)


def mixer(at: str, spec: MixerSpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    """The parameters of a layer's attention, or of what it has in its place."""
    if isinstance(spec, AttentionSpec):
        return _attention(at, spec, hidden, norm)
    if isinstance(spec, LatentAttentionSpec):
        return _latent(at, spec, hidden)
    if isinstance(spec, ExpertAttentionSpec):
        return _expert_attention(at, spec, hidden, norm)
    if isinstance(spec, ExpertPagedAttentionSpec):
        return _paged_experts(at, spec, hidden)
    if isinstance(spec, GatedDeltaSpec):
        return _gated_delta(at, spec, hidden)
    if isinstance(spec, LinearAttentionSpec):
        return _linear_attention(at, spec, hidden)
    if isinstance(spec, Mamba2Spec):
        return _mamba2(at, spec, hidden)
    if isinstance(spec, MambaSpec):
        return _mamba(at, spec, hidden)
    return _short_conv(at, spec, hidden)


def _attention(at: str, spec: AttentionSpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    sizes = {"q": spec.q_size, "k": spec.kv_size}
    if spec.values == "projected":
        sizes["v"] = spec.value_size
    yield from merged(at, sizes, hidden, spec.qkv_bias)
    yield from linear(f"{at}.o", hidden, spec.mixed_size, spec.output_bias)
    if spec.output_gate is not None:
        yield from linear(f"{at}.gate", spec.gate_size, hidden, spec.output_gate.bias)
        if spec.output_gate.head_bias:
            yield Vector(f"{at}.gate.head_bias", (spec.num_heads,))
    if spec.qk_norm in ("head", "full"):
        per_head = spec.qk_norm == "head"
        for part in "qk":
            yield from norm_weights(f"{at}.{part}_norm", norm, spec.head_dim if per_head else sizes[part])
    if spec.sinks:
        yield Vector(f"{at}.sinks", (spec.num_heads,))


def _latent(at: str, spec: LatentAttentionSpec, hidden: int) -> Iterator[Kept]:
    inner = NormSpec(eps=spec.norm_eps)
    if spec.query_rank is None:
        yield whole(f"{at}.q", spec.q_size, hidden)
    else:
        yield from linear(f"{at}.q_a", spec.query_rank, hidden, spec.bias)
        yield from norm_weights(f"{at}.q_a_norm", inner, spec.query_rank)
        yield whole(f"{at}.q_b", spec.q_size, spec.query_rank)
    yield from linear(f"{at}.kv_a", spec.cached_dim, hidden, spec.bias)
    yield from norm_weights(f"{at}.kv_a_norm", inner, spec.latent_dim)
    for head in range(spec.num_heads):  # keys transposed, to absorb queries; values as they are
        name = f"{at}.kv_b.{head}.weight"
        shape = (spec.key_dim + spec.value_dim, spec.latent_dim)
        yield Matrix(name, spec.latent_dim, spec.key_dim, {name: shape})
        yield Matrix(name, spec.value_dim, spec.latent_dim, {})
    yield from linear(f"{at}.o", hidden, spec.num_heads * spec.value_dim, spec.output_bias)
    if spec.indexer is not None and spec.indexer.source == "own":
        yield from _indexer(f"{at}.indexer", spec.indexer, hidden, spec.query_rank or 0)


def _indexer(at: str, spec: IndexerSpec, hidden: int, query_rank: int) -> Iterator[Kept]:
    yield whole(f"{at}.q", spec.num_heads * spec.head_dim, query_rank)
    yield whole(f"{at}.k", spec.head_dim, hidden)
    yield from norm_weights(f"{at}.k_norm", NormSpec(eps=spec.norm_eps, kind="layer", bias=True), spec.head_dim)
    yield whole(f"{at}.weights", spec.num_heads, hidden)


def _expert_attention(at: str, spec: ExpertAttentionSpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    yield from router(f"{at}.router", spec.router, spec.num_experts, hidden)
    yield from experts(f"{at}.experts", spec.projections, hidden)
    yield from merged(at, {"k": spec.kv_size, "v": spec.kv_size}, hidden, False)
    if spec.output_bias:
        yield Vector(f"{at}.output_bias.weight", (hidden,))


def _paged_experts(at: str, spec: ExpertPagedAttentionSpec, hidden: int) -> Iterator[Kept]:
    yield from router(f"{at}.router", spec.router, spec.num_experts, hidden)
    sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
    if spec.owned == "qk":
        yield from linear(f"{at}.v", sizes.pop("v"), hidden, spec.qkv_bias)
        yield from linear(f"{at}.o", hidden, spec.q_size, spec.output_bias)
    for expert in range(spec.num_experts):
        yield from merged(f"{at}.experts.{expert}", sizes, hidden, spec.qkv_bias)
        if spec.owned == "qkvo":
            yield from linear(f"{at}.experts.{expert}.o", hidden, spec.q_size, spec.output_bias)


def _gated_delta(at: str, spec: GatedDeltaSpec, hidden: int) -> Iterator[Kept]:
    mixed = {"q": spec.key_size, "k": spec.key_size, "v": spec.value_size}
    own = spec.rank is None
    yield from merged(at, mixed | ({"gate": spec.value_size} if own else {}), hidden, False)
    yield from merged(at, {"beta": spec.num_heads} | ({"decay": spec.num_decays} if own else {}), hidden, False)
    if spec.rank is not None:
        for name, size in (("decay", spec.num_decays), ("gate", spec.value_size)):
            yield whole(f"{at}.{name}.down", spec.rank, hidden)
            yield whole(f"{at}.{name}.up", size, spec.rank)
    yield from convolution(at, mixed, spec.conv_width, False)
    yield Vector(f"{at}.rate", (spec.num_heads,) if spec.decay == "head" else (1, 1, spec.num_heads, 1))
    yield Vector(f"{at}.decay_bias", (spec.num_decays,))
    yield Vector(f"{at}.norm.weight", (spec.value_dim,))
    yield whole(f"{at}.o", hidden, spec.value_size)


def _linear_attention(at: str, spec: LinearAttentionSpec, hidden: int) -> Iterator[Kept]:
    yield from merged(at, dict.fromkeys("qkv", spec.size), hidden, False)
    yield whole(f"{at}.gate", spec.size, hidden)
    yield Vector(f"{at}.norm.weight", (spec.size,))
    yield whole(f"{at}.o", hidden, spec.size)


def _mamba2(at: str, spec: Mamba2Spec, hidden: int) -> Iterator[Kept]:
    mixed = {"x": spec.inner_size, "b": spec.group_size, "c": spec.group_size}
    yield from merged(at, {"gate": spec.inner_size} | mixed, hidden, spec.bias)
    yield from linear(f"{at}.step", spec.num_heads, hidden, spec.bias)
    yield from convolution(at, {"": sum(mixed.values())}, spec.conv_width, spec.conv_bias)
    for name in ("rate", "step_bias", "skip"):
        yield Vector(f"{at}.{name}", (spec.num_heads,))
    yield Vector(f"{at}.norm.weight", (spec.inner_size,))
    yield from linear(f"{at}.o", hidden, spec.inner_size, spec.bias)


def _mamba(at: str, spec: MambaSpec, hidden: int) -> Iterator[Kept]:
    inner, rank = spec.inner_size, spec.step_rank
    yield from merged(at, {"x": inner, "gate": inner}, hidden, spec.bias)
    yield from convolution(at, {"": inner}, spec.conv_width, spec.conv_bias)
    yield from merged(at, {"step_down": rank, "step_b": spec.state_size, "step_c": spec.state_size}, inner, False)
    for name, size in (("step_norm", rank), ("b_norm", spec.state_size), ("c_norm", spec.state_size)):
        yield Vector(f"{at}.{name}.weight", (size,))
    yield whole(f"{at}.step_up", inner, rank)
    yield Vector(f"{at}.step_bias", (inner,))
    yield Vector(f"{at}.skip", (inner,))
    yield Vector(f"{at}.rate", (inner, spec.state_size))
    yield from linear(f"{at}.o", hidden, inner, spec.bias)


def _short_conv(at: str, spec: ShortConvSpec, hidden: int) -> Iterator[Kept]:
    yield from linear(f"{at}.x", hidden, hidden, spec.bias)
    yield from merged(at, {"b": hidden, "c": hidden}, hidden, spec.bias)
    yield from convolution(at, {"": hidden}, spec.width, spec.bias)
    yield from linear(f"{at}.o", hidden, hidden, spec.bias)
