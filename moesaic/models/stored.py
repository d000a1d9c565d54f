"""Which weights of a model keep the codes that a quantised checkpoint has."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from moesaic.core.formats import WeightFormat
from moesaic.core.log import get_logger
from moesaic.kernels.cpu.arena import Arenas, nowhere
from moesaic.kernels.cpu.packed import Sink
from moesaic.layers.base import BuildContext
from moesaic.models.decoder import Decoder
from moesaic.models.spec import ModelSpec
from moesaic.weights.codecs.codes import is_coded
from moesaic.weights.quantization import QuantizationPlan
from moesaic.weights.rules import AnyRule, RuleBook
from moesaic.weights.sources import Source
from moesaic.weights.staging import stored_format

log = get_logger(__name__)


def keep_stored(
    plan: QuantizationPlan, spec: ModelSpec, ctx: BuildContext, rules: Iterable[AnyRule], source: Source | None
) -> QuantizationPlan:
    """The plan, with the formats of all weights that are to keep their codes.

    A weight keeps them where a packed format does, and what shares a matrix with it has the same. For that, the model
    is built once in no memory: its layers know what becomes one matrix.
    """
    if plan.scheme != "auto" or source is None or not is_coded(source):
        return plan
    stored = sum(source.format_of(name) is not None for name in source.tensors)
    if not stored:
        return plan
    if ctx.backends["matrices"] != "cpu":
        log.info("the checkpoint's %d quantised weights become %s: codes need the C++ kernels", stored, plan.dtype)
        return plan
    matrices = _matrices(Decoder(spec, replace(ctx, memory=Arenas(nowhere))), rules, source)
    kept = {name: found.pop() for name, found in matrices.items() if len(found) == 1 and None not in found}
    found = replace(plan, stored={name.removesuffix(".weight"): format for name, format in kept.items() if format})
    formats = [format for name, format in kept.items() if found.format_of(name) == format]
    words = ", ".join(f"{count} in {format}" for format, count in Counter(map(str, formats)).items())
    log.info(
        "%d of %d weights keep the checkpoint's own codes%s; the others are %s",
        len(formats),
        len(matrices),
        f" ({words})" if words else "",
        plan.dtype,
    )
    return found


def _matrices(model: Decoder, rules: Iterable[AnyRule], source: Source) -> dict[str, set[WeightFormat | None]]:
    """Canonical name of each weight in a packed matrix -> stored formats of all weights in that matrix."""
    parameters = dict(model.named_views())
    shapes = {name: tuple(into.shape) for name, into in parameters.items()}
    book = RuleBook(rules, shapes, {name: info.shape for name, info in source.tensors.items()})
    matrices: dict[int, set[WeightFormat | None]] = defaultdict(set)
    inside = {name: id(into.matrix) for name, into in parameters.items() if isinstance(into, Sink)}
    for name, matrix in inside.items():
        places = [place for place in book.locate(name, shapes[name]) if place.source in source.tensors]
        matrices[matrix] |= {stored_format(source, p.source, p.index, p.view) for p in places} or {None}
    return {name: set(matrices[matrix]) for name, matrix in inside.items()}
