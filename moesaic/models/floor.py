"""The floor of a step: what it cannot be faster than. Torch-free arithmetic on a model's spec.

A step reads every weight that it needs once, and the keys and values of its sequences; it multiplies each of its tokens
with the weights that the token meets. Bytes over the memory's bandwidth, or operations over the peak of matrix
products, whichever takes longer, is the floor. Both limits are measured beside the step (`kernels.cpu.limits`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.core.formats import WeightFormat
from moesaic.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    LatentAttentionSpec,
    MixerSpec,
    ModelSpec,
    MoESpec,
)

BITS = {"f32": 32, "f16": 16, "bf16": 16, "w8": 8, "w4": 4, "w8a8": 8, "mxfp4": 4}
SCALE_BITS = 16
SMALL_BYTES = 4  # norms and biases are kept as fp32
MULTIPLY_ADD = 2  # operations


@dataclass(frozen=True, kw_only=True)
class Formats:
    """What a model's weights and its KV cache are kept in.

    Attributes:
        kv_bytes: of one element of a key or value.
        state_bytes: of one sequence's recurrent state in all layers, which a step reads and writes.
    """

    experts: WeightFormat
    dense: WeightFormat  # attention's projections and feed-forwards without experts
    head: WeightFormat
    router: WeightFormat = WeightFormat("f32")
    kv_bytes: float = 4.0
    state_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step computes.

    Attributes:
        chunks: for each sequence, how many of its tokens were there before, and how many are computed.
        rows: of logits.
        distinct: experts that the step's tokens go to, an entry a layer; None for what uniform routing would touch.
    """

    chunks: Sequence[tuple[int, int]]
    rows: int
    distinct: Sequence[int] | None = None

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.chunks)


def decode(batch: int, context: int) -> Work:
    """A step in which `batch` sequences get one token each, the last of `context`."""
    return Work(chunks=[(context - 1, 1)] * batch, rows=batch)


def prefill(batch: int, length: int) -> Work:
    """A step that computes `batch` prompts and their first tokens."""
    return Work(chunks=[(0, length)] * batch, rows=batch)


def expected_distinct(num_experts: int, top_k: int, tokens: int) -> float:
    """Experts that `tokens` tokens touch, each drawing `top_k` of them uniformly without repetition."""
    return num_experts * (1 - (1 - top_k / num_experts) ** tokens)


def matrix_bytes(format: WeightFormat, rows: int, cols: int) -> float:
    """Of a matrix with `rows` outputs and `cols` inputs, as csrc/common/formats.h keeps it, less padding."""
    bits = rows * cols * BITS[format.kind]
    if format.quantised:
        groups = -(-cols // format.group) if format.group else 1
        bits += rows * groups * SCALE_BITS * (2 if format.offsets else 1)
    return bits / 8


def step_bytes(spec: ModelSpec, formats: Formats, work: Work) -> float:
    """Bytes that the step must move: weights once, keys and values of all it attends to once, and states, both ways."""
    hidden = spec.hidden_size
    total = matrix_bytes(formats.head, spec.vocab_size, hidden) if work.rows else 0.0
    for index, layer in enumerate(spec.layers):
        attention = layer.attention
        total += sum(matrix_bytes(formats.dense, *shape) for shape in _projections(attention, hidden))
        small = attention.num_parameters(hidden) - _elements(attention, hidden) if attention is not None else 0
        total += SMALL_BYTES * (small + layer.num_norms * hidden)
        total += formats.kv_bytes * sum(_numbers_read(attention, *chunk) for chunk in work.chunks)
        if isinstance(layer.ffn, DenseSpec):
            total += _ffn_bytes(formats.dense, hidden, layer.ffn)
        if (moe := layer.moe) is not None:
            total += _moe_bytes(formats, hidden, moe, work.tokens, work.distinct[index] if work.distinct else None)
    return total + 2 * formats.state_bytes * len(work.chunks)


def _moe_bytes(formats: Formats, hidden: int, moe: MoESpec, tokens: int, distinct: int | None) -> float:
    """Of a router, the experts that tokens go to, and the shared one."""
    touched: float = 0 if distinct is None else distinct
    if distinct is None:  # each expert, one of no weight or not, is as likely as any other
        touched = expected_distinct(moe.num_choices, moe.router.top_k, tokens) * moe.num_experts / moe.num_choices
    total = matrix_bytes(formats.router, moe.num_choices, hidden)
    total += touched * _ffn_bytes(formats.experts, moe.width(hidden), moe.expert)
    if moe.latent_size is not None:
        total += 2 * matrix_bytes(formats.dense, moe.latent_size, hidden)
    return total if moe.shared is None else total + _ffn_bytes(formats.dense, hidden, moe.shared.ffn)


def step_operations(spec: ModelSpec, work: Work) -> float:
    """Additions and multiplications of the step's matrix products and its attention."""
    hidden = spec.hidden_size
    total = float(work.rows * spec.vocab_size * hidden)
    for layer in spec.layers:
        attention = layer.attention
        active = sum(ffn.num_active_parameters(hidden) for ffn in layer.feed_forwards)
        total += work.tokens * (_elements(attention, hidden) + active)
        total += sum(_products(attention, *chunk) for chunk in work.chunks)
    return MULTIPLY_ADD * total


def floor_seconds(spec: ModelSpec, formats: Formats, work: Work, stream: float, peak: float) -> float:
    """What the step takes at least.

    Args:
        stream: bytes a second that memory gives.
        peak: operations a second of matrix products in the formats' precision.
    """
    return max(step_bytes(spec, formats, work) / stream, step_operations(spec, work) / peak)


def weight_bytes(spec: ModelSpec, formats: Formats, embedding_bytes: float = 2.0) -> float:
    """All weights as they lie in memory.

    Args:
        embedding_bytes: of an element of the embedding table, where the output projection is another matrix.
    """
    every = Work(chunks=[], rows=1, distinct=[la.moe.num_experts if la.moe else 0 for la in spec.layers])
    table = 0.0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size * embedding_bytes
    return step_bytes(spec, formats, every) + table


def _ffn_bytes(weight: WeightFormat, hidden: int, ffn: DenseSpec) -> float:
    size = ffn.intermediate_size
    return matrix_bytes(weight, size * (2 if ffn.gated else 1), hidden) + matrix_bytes(weight, hidden, size)


def _projections(attention: MixerSpec | None, hidden: int) -> list[tuple[int, int]]:
    """(outputs, inputs) of attention's matrices."""
    if isinstance(attention, LatentAttentionSpec):
        down = (attention.query_rank or attention.q_size) + attention.cached_dim
        around = [(down, hidden), *attention.matrices, (hidden, attention.num_heads * attention.value_dim)]
        indexer = attention.indexer
        return around if indexer is None else [*around, *indexer.matrices(hidden, attention.query_rank or 0)]
    if isinstance(attention, AttentionSpec):
        qkv = attention.q_size + attention.kv_size + attention.value_size
        return [(qkv + attention.gate_size, hidden), (hidden, attention.mixed_size)]
    if isinstance(attention, ExpertAttentionSpec | ExpertPagedAttentionSpec):
        return [(attention.num_parameters(hidden) // hidden, hidden)]  # it has little else
    return [] if attention is None else attention.projections(hidden)


def _elements(attention: MixerSpec | None, hidden: int) -> int:
    """Of attention's matrices."""
    return sum(rows * cols for rows, cols in _projections(attention, hidden))


def kept_numbers(attention: MixerSpec | None) -> int:
    """Numbers in the cache for a token."""
    if isinstance(attention, LatentAttentionSpec):
        return attention.cached_dim + _index_dim(attention)
    return attention.kv_size + attention.value_size if isinstance(attention, AttentionSpec) else 0


def _index_dim(attention: LatentAttentionSpec) -> int:
    """Of these, the indexer's."""
    indexer = attention.indexer
    return indexer.head_dim if indexer is not None and indexer.source == "own" else 0


def _numbers_read(attention: MixerSpec | None, start: int, count: int) -> int:
    """Numbers of the cache that a chunk needs: of all positions before its end, of those that its first token's window
    reaches, or of as many as an indexer chooses, which has looked at its own of all."""
    if isinstance(attention, LatentAttentionSpec) and attention.indexer is not None:
        chosen = min(start + count, count * attention.indexer.top_k)
        return chosen * attention.cached_dim + (start + count) * _index_dim(attention)
    window = _window(attention)
    positions = start + count if window is None else min(start + count, window - 1 + count)
    return positions * kept_numbers(attention)


def _products(attention: MixerSpec | None, start: int, count: int) -> int:
    """Multiplications for all pairs of a chunk's token and a position that it sees: scores, and mixing."""
    if not isinstance(attention, LatentAttentionSpec):
        each = attention.q_size + attention.mixed_size if isinstance(attention, AttentionSpec) else 0
        return each * _pairs(_window(attention), start, count)
    each, indexer = attention.num_heads * (attention.cached_dim + attention.latent_dim), attention.indexer
    if indexer is None:
        return each * _pairs(None, start, count)
    looked_at = indexer.num_heads * _index_dim(attention) * _pairs(None, start, count)
    return looked_at + each * _pairs(indexer.top_k, start, count)


def _window(attention: MixerSpec | None) -> int | None:
    return attention.window if isinstance(attention, AttentionSpec) else None


def _pairs(most: int | None, start: int, count: int) -> int:
    """Pairs of a computed token and a position that it sees, at most so many of each token."""
    if most is None:
        return count * start + count * (count + 1) // 2
    return sum(min(position + 1, most) for position in range(start, start + count))
