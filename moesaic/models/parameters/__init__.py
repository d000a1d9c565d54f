"""Every parameter of a spec by its canonical name, and how the model keeps it, without building the model. Torch-free.

Layers build themselves from the same specs; that both name the same parameters, with the same shapes and the same
bytes, is what tests/unit/test_parameters.py compares for every family.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from math import prod

from moesaic.core.formats import WeightFormat
from moesaic.kernels.layouts import matrix_bytes
from moesaic.models.parameters.feed_forward import dense, moe
from moesaic.models.parameters.kept import Kept, Matrix, Vector, norm_weights, whole
from moesaic.models.parameters.mixers import mixer
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec
from moesaic.weights.rules import Shape

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
    yield whole("embed", spec.vocab_size, hidden)
    for index, layer in enumerate(spec.layers):
        if layers is None or index in layers:
            yield from _layer(f"layers.{index}", layer, spec)
    if spec.learned_positions:
        yield whole("positions", spec.max_position_embeddings, hidden)
    yield from norm_weights("norm", spec.norm, hidden)
    if not spec.tied_embeddings:
        yield whole("lm_head", spec.vocab_size, hidden)
    if spec.logits_bias:
        yield Vector("lm_head.bias", (spec.vocab_size,))


def _layer(at: str, layer: LayerSpec, model: ModelSpec) -> Iterator[Kept]:
    hidden, norm = model.hidden_size, layer.norm or model.norm
    before = {"attention": ("pre", "sandwich", "ffn_sandwich", "parallel", "residual")}
    before["ffn"] = ("pre", "sandwich", "ffn_sandwich", "residual")
    after = {"attention": ("post", "sandwich"), "ffn": ("post", "sandwich", "ffn_sandwich")}
    for part, there in (("attention", layer.attention), ("ffn", layer.ffn)):
        if there is not None and layer.norms in before[part]:
            yield from norm_weights(f"{at}.{part}_norm", norm, hidden)
        if there is not None and layer.norms in after[part]:
            yield from norm_weights(f"{at}.{part}_post_norm", norm, hidden)
    if layer.attention is not None:
        yield from mixer(f"{at}.attention", layer.attention, hidden, model.norm)
    if isinstance(layer.ffn, MoESpec):
        yield from moe(f"{at}.mlp", layer.ffn, hidden, norm)
    elif layer.ffn is not None:
        yield from dense(f"{at}.mlp", layer.ffn, hidden)
    if layer.shortcut is not None:
        yield from moe(f"{at}.shortcut", layer.shortcut, hidden, norm)
    if layer.scalar:
        yield Vector(f"{at}.scalar", (1,))
