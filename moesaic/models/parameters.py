"""Every parameter of a spec by its canonical name, and how the model keeps it, without building the model. Torch-free.

Layers build themselves from the same specs; that both name the same parameters, with the same shapes and the same
bytes, is what tests/unit/test_parameters.py compares for every family.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from moesaic.core.formats import WeightFormat
from moesaic.kernels.layouts import matrix_bytes
from moesaic.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    GatedDeltaSpec,
    IndexerSpec,
    LatentAttentionSpec,
    LayerSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MixerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RouterSpec,
    ShortConvSpec,
)
from moesaic.weights.rules import Shape


@dataclass(frozen=True)
class Matrix:
    """A weight `[rows, cols]` = `[outputs, inputs]` as kernels keep it.

    Attributes:
        name: canonical, of the parameter that decides about its format.
        parts: the parameters that lie in it, and their shapes.
        gated: rows are gate's, then up's.
    """

    name: str
    rows: int
    cols: int
    parts: Mapping[str, Shape]
    gated: bool = False


@dataclass(frozen=True)
class Vector:
    """A parameter that is kept as numbers of its own, in fp32."""

    name: str
    shape: Shape


Kept = Matrix | Vector
VECTOR_BYTES = 4  # of each number of a vector


def weight_bytes(
    spec: ModelSpec,
    format_of: Callable[[str], WeightFormat],
    quads: bool = False,
    weights: Iterable[Kept] | None = None,
) -> dict[str, int]:
    """Bytes of all weights as the CPU kernels keep them: the name of what is kept together -> bytes.

    Args:
        format_of: of a matrix, by its canonical name (`QuantizationPlan.format_of`).
        quads: as of `kernels.layouts.matrix_bytes`.
        weights: `kept_weights(spec)`, where they are at hand.
    """
    total: dict[str, int] = {}
    sizes: dict[tuple[int, int, WeightFormat, bool], int] = {}  # thousands of experts share a few
    for kept in kept_weights(spec) if weights is None else weights:
        if isinstance(kept, Vector):
            size = VECTOR_BYTES * prod(kept.shape)
        else:
            what = (kept.rows, kept.cols, format_of(kept.name), kept.gated)
            if what not in sizes:
                sizes[what] = matrix_bytes(*what, quads)
            size = sizes[what]
        total[kept.name] = total.get(kept.name, 0) + size
    head = format_of("lm_head.weight")
    if spec.tied_embeddings and head != format_of("embed.weight"):  # a second copy of the table, in the head's format
        total["lm_head.weight"] = matrix_bytes(spec.vocab_size, spec.hidden_size, head, quads=quads)
    return total


def parameter_shapes(spec: ModelSpec, layers: Collection[int] | None = None) -> dict[str, Shape]:
    """Canonical name -> shape of everything that loading must fill; in these layers alone, where some are named."""
    shapes: dict[str, Shape] = {}
    for kept in kept_weights(spec, layers):
        if isinstance(kept, Matrix):
            shapes.update(kept.parts)
        else:
            shapes[kept.name] = kept.shape
    return shapes


def kept_weights(spec: ModelSpec, layers: Collection[int] | None = None) -> Iterator[Kept]:
    """All weights of a model as they are kept (tied embeddings once, under the table's name)."""
    hidden = spec.hidden_size
    yield _whole("embed", spec.vocab_size, hidden)
    for index, layer in enumerate(spec.layers):
        if layers is None or index in layers:
            yield from _layer(f"layers.{index}", layer, spec)
    if spec.learned_positions:
        yield _whole("positions", spec.max_position_embeddings, hidden)
    yield from _norm("norm", spec.norm, hidden)
    if not spec.tied_embeddings:
        yield _whole("lm_head", spec.vocab_size, hidden)
    if spec.logits_bias:
        yield Vector("lm_head.bias", (spec.vocab_size,))


def _layer(at: str, layer: LayerSpec, model: ModelSpec) -> Iterator[Kept]:
    hidden, norm = model.hidden_size, layer.norm or model.norm
    before = {"attention": ("pre", "sandwich", "ffn_sandwich", "parallel", "residual")}
    before["ffn"] = ("pre", "sandwich", "ffn_sandwich", "residual")
    after = {"attention": ("post", "sandwich"), "ffn": ("post", "sandwich", "ffn_sandwich")}
    for part, there in (("attention", layer.attention), ("ffn", layer.ffn)):
        if there is not None and layer.norms in before[part]:
            yield from _norm(f"{at}.{part}_norm", norm, hidden)
        if there is not None and layer.norms in after[part]:
            yield from _norm(f"{at}.{part}_post_norm", norm, hidden)
    if layer.attention is not None:
        yield from _mixer(f"{at}.attention", layer.attention, hidden, model.norm)
    if isinstance(layer.ffn, MoESpec):
        yield from _moe(f"{at}.mlp", layer.ffn, hidden, norm)
    elif layer.ffn is not None:
        yield from _dense(f"{at}.mlp", layer.ffn, hidden)
    if layer.shortcut is not None:
        yield from _moe(f"{at}.shortcut", layer.shortcut, hidden, norm)
    if layer.scalar:
        yield Vector(f"{at}.scalar", (1,))


def _mixer(at: str, spec: MixerSpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
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
    yield from _merged(at, sizes, hidden, spec.qkv_bias)
    yield from _linear(f"{at}.o", hidden, spec.mixed_size, spec.output_bias)
    if spec.output_gate is not None:
        yield from _linear(f"{at}.gate", spec.gate_size, hidden, spec.output_gate.bias)
        if spec.output_gate.head_bias:
            yield Vector(f"{at}.gate.head_bias", (spec.num_heads,))
    if spec.qk_norm in ("head", "full"):
        per_head = spec.qk_norm == "head"
        for part in "qk":
            yield from _norm(f"{at}.{part}_norm", norm, spec.head_dim if per_head else sizes[part])
    if spec.sinks:
        yield Vector(f"{at}.sinks", (spec.num_heads,))


def _latent(at: str, spec: LatentAttentionSpec, hidden: int) -> Iterator[Kept]:
    inner = NormSpec(eps=spec.norm_eps)
    if spec.query_rank is None:
        yield _whole(f"{at}.q", spec.q_size, hidden)
    else:
        yield from _linear(f"{at}.q_a", spec.query_rank, hidden, spec.bias)
        yield from _norm(f"{at}.q_a_norm", inner, spec.query_rank)
        yield _whole(f"{at}.q_b", spec.q_size, spec.query_rank)
    yield from _linear(f"{at}.kv_a", spec.cached_dim, hidden, spec.bias)
    yield from _norm(f"{at}.kv_a_norm", inner, spec.latent_dim)
    for head in range(spec.num_heads):  # keys transposed, to absorb queries; values as they are
        name = f"{at}.kv_b.{head}.weight"
        shape = (spec.key_dim + spec.value_dim, spec.latent_dim)
        yield Matrix(name, spec.latent_dim, spec.key_dim, {name: shape})
        yield Matrix(name, spec.value_dim, spec.latent_dim, {})
    yield from _linear(f"{at}.o", hidden, spec.num_heads * spec.value_dim, spec.output_bias)
    if spec.indexer is not None and spec.indexer.source == "own":
        yield from _indexer(f"{at}.indexer", spec.indexer, hidden, spec.query_rank or 0)


def _indexer(at: str, spec: IndexerSpec, hidden: int, query_rank: int) -> Iterator[Kept]:
    yield _whole(f"{at}.q", spec.num_heads * spec.head_dim, query_rank)
    yield _whole(f"{at}.k", spec.head_dim, hidden)
    yield from _norm(f"{at}.k_norm", NormSpec(eps=spec.norm_eps, kind="layer", bias=True), spec.head_dim)
    yield _whole(f"{at}.weights", spec.num_heads, hidden)


def _expert_attention(at: str, spec: ExpertAttentionSpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    yield from _router(f"{at}.router", spec.router, spec.num_experts, hidden)
    yield from _experts(f"{at}.experts", spec.projections, hidden)
    yield from _merged(at, {"k": spec.kv_size, "v": spec.kv_size}, hidden, False)
    if spec.output_bias:
        yield Vector(f"{at}.output_bias.weight", (hidden,))


def _paged_experts(at: str, spec: ExpertPagedAttentionSpec, hidden: int) -> Iterator[Kept]:
    yield from _router(f"{at}.router", spec.router, spec.num_experts, hidden)
    sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
    if spec.owned == "qk":
        yield from _linear(f"{at}.v", sizes.pop("v"), hidden, spec.qkv_bias)
        yield from _linear(f"{at}.o", hidden, spec.q_size, spec.output_bias)
    for expert in range(spec.num_experts):
        yield from _merged(f"{at}.experts.{expert}", sizes, hidden, spec.qkv_bias)
        if spec.owned == "qkvo":
            yield from _linear(f"{at}.experts.{expert}.o", hidden, spec.q_size, spec.output_bias)


def _gated_delta(at: str, spec: GatedDeltaSpec, hidden: int) -> Iterator[Kept]:
    mixed = {"q": spec.key_size, "k": spec.key_size, "v": spec.value_size}
    own = spec.rank is None
    yield from _merged(at, mixed | ({"gate": spec.value_size} if own else {}), hidden, False)
    yield from _merged(at, {"beta": spec.num_heads} | ({"decay": spec.num_decays} if own else {}), hidden, False)
    if spec.rank is not None:
        for name, size in (("decay", spec.num_decays), ("gate", spec.value_size)):
            yield _whole(f"{at}.{name}.down", spec.rank, hidden)
            yield _whole(f"{at}.{name}.up", size, spec.rank)
    yield from _conv(at, mixed, spec.conv_width, False)
    yield Vector(f"{at}.rate", (spec.num_heads,) if spec.decay == "head" else (1, 1, spec.num_heads, 1))
    yield Vector(f"{at}.decay_bias", (spec.num_decays,))
    yield Vector(f"{at}.norm.weight", (spec.value_dim,))
    yield _whole(f"{at}.o", hidden, spec.value_size)


def _linear_attention(at: str, spec: LinearAttentionSpec, hidden: int) -> Iterator[Kept]:
    yield from _merged(at, dict.fromkeys("qkv", spec.size), hidden, False)
    yield _whole(f"{at}.gate", spec.size, hidden)
    yield Vector(f"{at}.norm.weight", (spec.size,))
    yield _whole(f"{at}.o", hidden, spec.size)


def _mamba2(at: str, spec: Mamba2Spec, hidden: int) -> Iterator[Kept]:
    mixed = {"x": spec.inner_size, "b": spec.group_size, "c": spec.group_size}
    yield from _merged(at, {"gate": spec.inner_size} | mixed, hidden, spec.bias)
    yield from _linear(f"{at}.step", spec.num_heads, hidden, spec.bias)
    yield from _conv(at, {"": sum(mixed.values())}, spec.conv_width, spec.conv_bias)
    for name in ("rate", "step_bias", "skip"):
        yield Vector(f"{at}.{name}", (spec.num_heads,))
    yield Vector(f"{at}.norm.weight", (spec.inner_size,))
    yield from _linear(f"{at}.o", hidden, spec.inner_size, spec.bias)


def _mamba(at: str, spec: MambaSpec, hidden: int) -> Iterator[Kept]:
    inner, rank = spec.inner_size, spec.step_rank
    yield from _merged(at, {"x": inner, "gate": inner}, hidden, spec.bias)
    yield from _conv(at, {"": inner}, spec.conv_width, spec.conv_bias)
    yield from _merged(at, {"step_down": rank, "step_b": spec.state_size, "step_c": spec.state_size}, inner, False)
    for name, size in (("step_norm", rank), ("b_norm", spec.state_size), ("c_norm", spec.state_size)):
        yield Vector(f"{at}.{name}.weight", (size,))
    yield _whole(f"{at}.step_up", inner, rank)
    yield Vector(f"{at}.step_bias", (inner,))
    yield Vector(f"{at}.skip", (inner,))
    yield Vector(f"{at}.rate", (inner, spec.state_size))
    yield from _linear(f"{at}.o", hidden, inner, spec.bias)


def _short_conv(at: str, spec: ShortConvSpec, hidden: int) -> Iterator[Kept]:
    yield from _linear(f"{at}.x", hidden, hidden, spec.bias)
    yield from _merged(at, {"b": hidden, "c": hidden}, hidden, spec.bias)
    yield from _conv(at, {"": hidden}, spec.width, spec.bias)
    yield from _linear(f"{at}.o", hidden, hidden, spec.bias)


def _moe(at: str, spec: MoESpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    yield from _router(f"{at}.router", spec.router, spec.num_choices, hidden)
    yield from _experts(f"{at}.experts", spec, spec.width(hidden))
    if spec.latent_size is not None:
        yield _whole(f"{at}.latent_in", spec.latent_size, hidden)
        yield _whole(f"{at}.latent_out", hidden, spec.latent_size)
    if spec.output_bias:
        yield Vector(f"{at}.output_bias.weight", (hidden,))
    if spec.shared is not None:
        yield from _dense(f"{at}.shared", spec.shared.ffn, hidden)
        if spec.shared.gate:
            yield _whole(f"{at}.shared_gate", 1, hidden)
    if spec.norms == "own":
        for part in ("router", "input", "output", "shared"):
            yield from _norm(f"{at}.{part}_norm", norm, hidden)


def _router(at: str, spec: RouterSpec, choices: int, hidden: int) -> Iterator[Kept]:
    yield from _linear(at, choices, hidden, spec.bias)
    if spec.correction:
        yield Vector(f"{at}.correction", (choices,))
    if spec.expert_scale:
        yield Vector(f"{at}.expert_scale", (choices,))


def _experts(at: str, spec: MoESpec, width: int) -> Iterator[Kept]:
    for expert in range(spec.num_experts):
        yield from _dense(f"{at}.{expert}", spec.expert, width)


def _dense(at: str, spec: DenseSpec, hidden: int) -> Iterator[Kept]:
    size = spec.intermediate_size
    yield from _merged(at, {"gate": size, "up": size} if spec.gated else {"up": size}, hidden, spec.bias, spec.gated)
    yield from _linear(f"{at}.down", hidden, size, spec.bias)


def _merged(at: str, sizes: Mapping[str, int], cols: int, bias: bool, gated: bool = False) -> Iterator[Kept]:
    """Several projections of the same input as one product."""
    parts = {f"{at}.{name}.weight": (size, cols) for name, size in sizes.items()}
    yield Matrix(next(iter(parts)), sum(sizes.values()), cols, parts, gated)
    if bias:
        yield from (Vector(f"{at}.{name}.bias", (size,)) for name, size in sizes.items())


def _linear(at: str, rows: int, cols: int, bias: bool) -> Iterator[Kept]:
    yield _whole(at, rows, cols)
    if bias:
        yield Vector(f"{at}.bias", (rows,))


def _whole(at: str, rows: int, cols: int) -> Matrix:
    return Matrix(f"{at}.weight", rows, cols, {f"{at}.weight": (rows, cols)})


def _norm(at: str, spec: NormSpec, size: int) -> Iterator[Kept]:
    yield Vector(f"{at}.weight", (size,))
    if spec.bias:
        yield Vector(f"{at}.bias", (size,))


def _conv(at: str, parts: Mapping[str, int], width: int, bias: bool) -> Iterator[Kept]:
    for part, size in parts.items():
        name = f"{at}.conv.{part}" if part else f"{at}.conv"
        yield Vector(f"{name}.weight", (size, 1, width))
        if bias:
            yield Vector(f"{name}.bias", (size,))
