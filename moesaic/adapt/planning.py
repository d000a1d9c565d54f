"""`plan`: the dry run. Will a checkpoint work here, does it fit, how fast will it be, and with which flags?"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from moesaic.adapt.machines import Machine, accelerators, size_given, this_machine
from moesaic.adapt.memory import AS_STORED, Cache, Memory, Weights, formats_of_schemes, memory_of
from moesaic.adapt.parts import part_of
from moesaic.adapt.predict import Speed, offloaded_seconds, parallel_seconds, speed, step_seconds
from moesaic.adapt.recognise import dtype_of
from moesaic.adapt.report import accounts_of, report_on, stored_formats
from moesaic.adapt.survey import Survey, survey
from moesaic.core.config import DType
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.core.units import size_of
from moesaic.engine.args import EngineArgs
from moesaic.engine.resolve import check_args, find_model
from moesaic.models.floor import Formats, decode, kept_numbers
from moesaic.models.load import spec_of
from moesaic.models.parameters import Matrix, kept_weights
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.layouts.packed import PACKED

CONTEXT = 4096  # tokens of a sequence, where nobody says more
BATCHES = (1, 8, 32)
MAX_BATCHED_TOKENS = 2048  # as EngineArgs has it
LOGITS_ROWS = MOST_SEQUENCES = 256  # that run at once, as EngineArgs has it
RUNTIME = {"cpu": 420 << 20, "cuda": 1500 << 20}  # of Python, torch and libraries in the engine's process
BLOCK = 16
MS = 1e3


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` found.

    Attributes:
        architecture: by the name that the config has for it.
        context: tokens of a sequence that was planned for.
        options: best precision first.
        chosen: the first that fits; None where none does.
        flags: of `moesaic serve`, for the chosen one.
        remarks: what else one should know, a sentence each.
        loads: nothing in its headers speaks against loading it.
    """

    path: str
    architecture: str
    num_parameters: int
    num_active_parameters: int
    machine: Machine
    context: int
    options: tuple[Option, ...]
    chosen: Option | None
    flags: tuple[str, ...]
    remarks: tuple[str, ...]
    loads: bool


def plan(
    path: str,
    *,
    memory: str | None = None,
    gpus: str | None = None,
    context: int | None = None,
    kv_cache_dtype: str = "auto",
    arch: str | None = None,
    threads: int | None = None,
    bandwidth: float | None = None,
    compute: float | None = None,
) -> Plan:
    """Plan the serving of the checkpoint at `path`, without loading it.

    Args:
        memory: what weights, cache and runtime may take together, such as "24GiB"; the machine's own by default.
        gpus: accelerators instead of this machine, such as "8xH200".
        context: tokens of a sequence; what the model can at most, up to 4096, by default.
        arch: file with the architecture, as `--arch` of `serve`.
        bandwidth, compute: bytes and operations a second, instead of what is measured or known.

    Raises:
        ConfigError, CheckpointError: the checkpoint is not one that is served; the message says why.
    """
    if memory is not None and gpus is not None:
        raise ConfigError("--memory and --gpus exclude each other: a GPU's memory is known")
    check_args(EngineArgs(model=path, kv_cache_dtype=kv_cache_dtype, threads=threads))
    found = survey(find_model(path))
    report = report_on(found, arch)
    spec = _spec_of(found, arch)
    length = context if context is not None else min(CONTEXT, spec.max_position_embeddings)
    if not 0 < length <= spec.max_position_embeddings:
        most = spec.max_position_embeddings
        raise ConfigError(f"--context must be from 1 to the model's {most} positions, got {length}")
    machine = _machine(gpus, memory, threads, bandwidth, compute)
    dtype, stored = cast(DType, dtype_of(found)), stored_formats(found, accounts_of(found, arch))
    kv_dtype = dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    sizes = memory_of(spec, dtype, stored, found.naming == PACKED)
    options = _options(spec, machine, length, sizes, formats_of_schemes(dtype, stored), kv_dtype)
    chosen = next((option for option in options if option.fits), None)
    wrong = [f"it does not load as it is: {what}" for what in (*report.problems, *report.misfits)[:3]]
    return Plan(
        path=found.path,
        architecture=report.identity.architecture,
        num_parameters=spec.num_parameters,
        num_active_parameters=spec.num_active_parameters,
        machine=machine,
        context=length,
        options=options,
        chosen=chosen,
        flags=() if chosen is None else tuple(_flags(chosen, machine, length, spec, memory, arch)),
        remarks=(*wrong, *_remarks(spec, machine, length, options, chosen)),
        loads=report.ok,
    )


def _spec_of(found: Survey, arch: str | None) -> ModelSpec:
    """What the checkpoint computes. Raises ConfigError or CheckpointError where nothing says so."""
    if found.config is None:
        raise CheckpointError(f"{found.path}: {'; '.join(map(str, found.problems)) or 'there is no config.json'}")
    architecture, spec = spec_of(dict(found.config), os.path.join(found.path, "config.json"), arch)
    if not isinstance(spec, ModelSpec):
        raise UnsupportedError(f"plan computes from specs alone, and {architecture.name} has none (`moesaic models`)")
    return spec


def _machine(
    gpus: str | None, memory: str | None, threads: int | None, bandwidth: float | None, compute: float | None
) -> Machine:
    """Where the model is to run, with what the caller knows better."""
    if gpus is None:
        machine = this_machine(threads, bandwidth, compute)
    else:
        machine = accelerators(gpus)
        rates = machine.compute if compute is None else dict.fromkeys(machine.compute, compute)
        machine = replace(machine, bandwidth=bandwidth or machine.bandwidth, compute=rates)
    if memory is not None:
        machine = replace(machine, memory=size_given("--memory", memory), usable=1.0)
    return machine


def _options(
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


def _flags(
    option: Option, machine: Machine, context: int, spec: ModelSpec, memory: str | None, arch: str | None
) -> list[str]:
    """What to say to `moesaic serve` so that it does what was planned."""
    flags = [] if arch is None else ["--arch", arch]
    flags += [] if option.quantization in ("none", "auto") else ["--quantization", option.quantization]
    longest = int((option.cache_bytes - option.cache.sequence) // max(option.cache.token, 1))
    if longest < spec.max_position_embeddings:
        flags += ["--max-model-len", str(max(context, longest // BLOCK * BLOCK))]
    if memory is not None:
        flags += ["--kv-cache-memory", f"{option.cache_bytes >> 20}MiB"]
    elif option.weights.nbytes > 0.4 * machine.memory and machine.device == "cpu":
        flags += ["--gpu-memory-utilization", str(machine.usable)]
    return flags


def _remarks(
    spec: ModelSpec, machine: Machine, context: int, options: Sequence[Option], chosen: Option | None
) -> list[str]:
    """What speaks for and against, a sentence each."""
    best = options[0]
    remarks = []
    if chosen is None:
        remarks.append(_what_is_missing(machine, context, options))
    elif chosen is not best:
        remarks.append(f"as it is kept, it does not fit; {chosen.quantization} is the most precise that does")
    elif machine.device == "cpu":
        remarks += _faster(options, chosen)
    if machine.device != "cpu":
        remarks.append("our GPU kernels have not landed in this version: speeds are what the memory's bandwidth allows")
    if machine.count > 1:
        remarks.append(_of_parallelism(spec, machine, context, chosen or options[-1]))
    if chosen is not best and best.weights.parts.get("experts", 0):
        remarks.append(_of_offload(spec, machine, context, best, chosen))
    return remarks


def _what_is_missing(machine: Machine, context: int, options: Sequence[Option]) -> str:
    least = min(options, key=lambda option: option.weights.nbytes)
    need = least.weights.nbytes + least.runtime_bytes + least.cache.token * context + least.cache.sequence
    return (
        f"no precision fits into {size_of(int(machine.memory * machine.usable))}: {least.quantization} needs "
        f"{size_of(int(need))} with one sequence of {context} tokens"
    )


def _faster(options: Sequence[Option], chosen: Option) -> list[str]:
    """The precision that would be fastest, where that is another one."""
    best = min(options, key=lambda option: option.speeds[0].decode_seconds)
    gain = chosen.speeds[0].decode_seconds / best.speeds[0].decode_seconds
    if best is chosen:
        return []
    return [f"--quantization {best.quantization} decodes {gain:.1f} times as fast, from {size_of(best.weights.nbytes)}"]


def _of_parallelism(spec: ModelSpec, machine: Machine, context: int, option: Option) -> str:
    """Whether sharing the experts among devices pays."""
    works = {batch: decode(batch, context) for batch in BATCHES}
    shared = {batch: parallel_seconds(spec, option.formats, machine, work) for batch, work in works.items()}
    alone = {batch: step_seconds(spec, option.formats, machine, work) for batch, work in works.items()}
    if option.weights.nbytes + option.runtime_bytes > machine.memory * machine.usable:
        return (
            f"one {machine.name} does not hold {size_of(option.weights.nbytes)}: with the experts shared among "
            f"{machine.count}, a step of batch 1 takes {shared[1] * MS:.2f} ms; expert parallelism has not landed in "
            "this version"
        )
    compared = ", ".join(f"batch {b}: {alone[b] * MS:.2f} ms on one, {shared[b] * MS:.2f} on all" for b in BATCHES)
    slower = [str(batch) for batch in BATCHES if shared[batch] > alone[batch]]
    if slower:
        return f"expert parallelism would make it slower at batch {', '.join(slower)} ({compared}): run copies instead"
    return f"sharing the experts would pay ({compared}), but expert parallelism has not landed in this version"


def _of_offload(spec: ModelSpec, machine: Machine, context: int, full: Option, chosen: Option | None) -> str:
    """What keeping the best precision, with some experts in slower memory, would cost."""
    missing = min(1.0, max(0, -full.cache_bytes) / full.weights.parts["experts"])
    seconds = offloaded_seconds(spec, full.formats, machine, decode(1, context), missing)
    where = "on disk" if machine.device == "cpu" else "in the host's memory"
    said = f"with {missing:.0%} of the experts {where}, a step of batch 1 would take {seconds * MS:.0f} ms"
    if chosen is None:
        return f"{said}; expert offload has not landed in this version"
    takes = chosen.speeds[0].decode_seconds
    verdict = "make it slower" if seconds > takes else "pay"
    return f"offload would {verdict}: {said}, in {chosen.quantization} it takes {takes * MS:.0f} ms"
