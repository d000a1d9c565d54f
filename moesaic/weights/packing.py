"""The packed matrices behind a model's parameters: which there are, and that each has one format."""

from collections.abc import Mapping

from moesaic.core.errors import ConfigError
from moesaic.kernels.cpu.packed import Both, PackedMatrix, Sink, Split
from moesaic.weights.quantization import QuantizationPlan
from moesaic.weights.staging import Target


def packed_matrices(parameters: Mapping[str, Target]) -> tuple[list[tuple[str, PackedMatrix]], set[str]]:
    """Every packed matrix once, with the name of the first parameter in it; and all parameters that lie in some."""
    matrices, inside = matrices_by_parameter(parameters)
    return matrices, set(inside)


def matrices_by_parameter(
    parameters: Mapping[str, Target],
) -> tuple[list[tuple[str, PackedMatrix]], dict[str, tuple[str, ...]]]:
    """Every packed matrix once, with the name of the first parameter in it (`.twin` behind it where that fills a second
    one); and the names of the matrices that each parameter fills, of those that lie in some."""
    found: dict[int, tuple[str, PackedMatrix]] = {}
    inside = {}
    for name, into in parameters.items():
        named = zip(_sinks(into), ("", ".twin"), strict=False)
        matrices = [found.setdefault(id(sink.matrix), (name + suffix, sink.matrix)) for sink, suffix in named]
        if matrices:
            inside[name] = tuple(matrix_name for matrix_name, _ in matrices)
    return list(found.values()), inside


def check_plan(plan: QuantizationPlan, parameters: Mapping[str, Target]) -> None:
    """See that the plan's patterns are about this model, and give one format to what is one matrix.

    Raises:
        ConfigError: they do not.
    """
    sinks = {name: _sinks(into)[0] for name, into in parameters.items() if _sinks(into)}
    if sinks:
        plan.check([*sinks, "lm_head"])
    first: dict[int, str] = {}
    for name, sink in sinks.items():
        neighbour = first.setdefault(id(sink.matrix), name)
        if plan.format_of(name) != sink.matrix.format:
            raise ConfigError(
                f"quantization_config gives {name} ({plan.format_of(name)}) another format than {neighbour} "
                f"({sink.matrix.format}), but the two are one matrix: give both the same"
            )


def _sinks(into: Target | Both) -> list[Sink]:
    if isinstance(into, Both | Split):
        return [into.first, into.second]
    return [into] if isinstance(into, Sink) else []
