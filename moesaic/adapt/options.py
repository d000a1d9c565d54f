"""The ways of keeping a model's weights on a machine: what each takes, what is left for the cache, how fast it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moesaic.adapt.machines import Machine
from moesaic.adapt.memory import AS_STORED, Cache, Memory, Weights
from moesaic.adapt.parts import part_of
from moesaic.adapt.predict import Speed, speed
from moesaic.core.formats import WeightFormat
from moesaic.models.floor import Formats, kept_numbers
from moesaic.models.parameters import Matrix, kept_weights
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec

BATCHES = (1, 8, 32)
MAX_BATCHED_TOKENS = 2048  # as EngineArgs has it
LOGITS_ROWS = MOST_SEQUENCES = 256  # that run at once, as EngineArgs has it
RUNTIME = {"cpu": 216 << 20, "cuda": 1500 << 20}  # of Python, torch and libraries in the engine's process


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way of keeping the weights.

    Attributes:
        quantization: as `--quantization` takes it.
        weights, cache: what they take.
        runtime_bytes: what else the engine's process takes: libraries, and the activations of a full step.
        cache_bytes: what is left for the cache; negative where not even the weights fit.
        sequences: of the planned context that fit at once.
        formats: what a step reads weights in.
        speeds: by batch size.
    """

    quantization: str
    weights: Weights
    cache: Cache
    runtime_bytes: int
    cache_bytes: int
    sequences: int
    formats: Formats
    speeds: tuple[Speed, ...]

    @property
    def fits(self) -> bool:
        """At least one sequence of the planned context runs."""
        return self.sequences > 0


def options_of(
    spec: ModelSpec,
    machine: Machine,
    context: int,
    memory: Memory,
    ways: Mapping[str, Callable[[str], WeightFormat]],
    kv_dtype: str,
) -> tuple[Option, ...]:
    """Every way of keeping the weights, the best first."""
    cache = next(cache for cache in memory.caches if cache.dtype == kv_dtype)
    return tuple(
        _option(spec, machine, context, weights, cache, step_formats(spec, ways[weights.scheme], cache))
        for weights in memory.weights
    )


def _option(
    spec: ModelSpec, machine: Machine, context: int, weights: Weights, cache: Cache, formats: Formats
) -> Option:
    runtime = RUNTIME[machine.device] + activation_bytes(spec)
    # Accelerators share the experts; each holds the rest.
    elsewhere = weights.parts.get("experts", 0) * (machine.count - 1) // machine.count
    left = int(machine.memory * machine.usable) - (weights.nbytes - elsewhere) - runtime
    one = context * cache.token + cache.sequence
    fitting = max(0, int(left // one)) * machine.count if one else MOST_SEQUENCES
    return Option(
        quantization="auto" if weights.scheme == AS_STORED else weights.scheme,
        weights=weights,
        cache=cache,
        runtime_bytes=runtime,
        cache_bytes=left,
        sequences=min(MOST_SEQUENCES, fitting) if left > 0 else 0,
        formats=formats,
        speeds=tuple(speed(spec, formats, machine, batch, context) for batch in BATCHES),
    )


def step_formats(spec: ModelSpec, format_of: Callable[[str], WeightFormat], cache: Cache) -> Formats:
    """What a step reads weights and cache in; of weights that are kept in several ways, the first one's."""
    first: dict[str, str] = {}
    for kept in kept_weights(spec):
        if isinstance(kept, Matrix):
            first.setdefault(part_of(kept.name), kept.name)
    dense = format_of(first.get("attention") or first.get("dense") or "embed.weight")
    numbers = sum(kept_numbers(layer.attention) for layer in spec.layers)
    return Formats(
        experts=format_of(first["experts"]) if "experts" in first else dense,
        dense=dense,
        head=format_of("lm_head.weight"),
        router=format_of(first["router"]) if "router" in first else dense,
        kv_bytes=cache.token / numbers if numbers else 0.0,
        state_bytes=cache.sequence,
    )


def activation_bytes(spec: ModelSpec) -> int:
    """What a full step computes with, fp32: the residual stream and what the widest part makes of it, and logits."""
    widest = max(_width(layer, spec.hidden_size) for layer in spec.layers)
    return 4 * (MAX_BATCHED_TOKENS * (4 * spec.hidden_size + widest) + LOGITS_ROWS * spec.vocab_size)


def _width(layer: LayerSpec, hidden: int) -> int:
    """Numbers that the widest part of a layer makes of a token."""
    moe = layer.moe
    experts = 0 if moe is None else moe.router.top_k * (2 * moe.intermediate_size + moe.width(hidden))
    dense = 2 * layer.ffn.intermediate_size if isinstance(layer.ffn, DenseSpec) else 0
    return max(experts, dense, 4 * hidden)
