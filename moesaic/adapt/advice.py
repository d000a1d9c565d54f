"""What speaks for and against a plan, in sentences."""

from collections.abc import Sequence

from moesaic.adapt.machines import Machine
from moesaic.adapt.options import BATCHES, Option
from moesaic.adapt.predict import offloaded_seconds, parallel_seconds, step_seconds
from moesaic.core.units import size_of
from moesaic.models.floor import decode
from moesaic.models.spec import ModelSpec

MS = 1e3


def remarks(
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
