"""`plan`: the dry run. Will a checkpoint work here, does it fit, how fast will it be, and with which flags?"""

import os
from dataclasses import dataclass, replace
from typing import cast

from moesaic.adapt.advice import remarks
from moesaic.adapt.machines import Machine, accelerators, size_given, this_machine
from moesaic.adapt.memory import formats_of_schemes, memory_of
from moesaic.adapt.options import Option, options_of
from moesaic.adapt.recognise import dtype_of
from moesaic.adapt.report import accounts_of, report_on, stored_formats
from moesaic.adapt.survey import Survey, survey
from moesaic.core.config import DType
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.engine.args import EngineArgs
from moesaic.engine.resolve import check_args, find_model
from moesaic.models.caches import BLOCK
from moesaic.models.load import spec_of
from moesaic.models.spec import ModelSpec
from moesaic.weights.layouts.packed import PACKED

CONTEXT = 4096  # tokens of a sequence, where nobody says more


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
    options = options_of(spec, machine, length, sizes, formats_of_schemes(dtype, stored), kv_dtype)
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
        remarks=(*wrong, *remarks(spec, machine, length, options, chosen)),
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
