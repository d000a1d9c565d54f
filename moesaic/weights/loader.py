"""Filling a model: from a checkpoint by a plan, or with seeded random numbers. Memory stays at the model's own size
plus one small buffer: what is kept as it is stored is read in place, what is packed goes through the buffer."""

import math
import time
import zlib
from collections.abc import Collection, Iterable, Mapping

import torch

from moesaic.core.errors import CheckpointError
from moesaic.core.log import get_logger
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.plan import Copy, plan_load
from moesaic.weights.pouring import pour_all
from moesaic.weights.progress import progress_bar
from moesaic.weights.report import LoadReport, report_of
from moesaic.weights.rules import AnyRule
from moesaic.weights.scan import Scan
from moesaic.weights.sources import Source
from moesaic.weights.staging import Sink, Staging, Target, bytes_read, pieces_of, row_ranges

log = get_logger(__name__)

DUMMY_STD = 0.02


def load_weights(
    parameters: Mapping[str, Target],
    rules: Iterable[AnyRule],
    source: Source,
    where: str,
    progress: bool = True,
    filled: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> LoadReport:
    """Fill every parameter from `source`, in place.

    Args:
        parameters: canonical name -> view of the model's storage, or a sink.
        where: the checkpoint's folder, for messages.
        progress: show how far it has come, on a terminal.
        filled: names of parameters that are filled already; the checkpoint must hold them all the same.
        allow_nonfinite: load NaN and infinities too, to look for what they do.

    Returns:
        What was seen of what was read; what is hardly meant is logged as a warning.

    Raises:
        CheckpointError: the checkpoint does not fill the model exactly (nothing was read then); or a weight has numbers
            that are not finite.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    plan = plan_load(shapes, rules, {name: i.shape for name, i in source.tensors.items()}, where)
    refuse_dtypes(source, plan.copies + plan.checks, where)
    place = {name: i for i, name in enumerate(source.tensors)}
    copies = sorted((c for c in plan.copies if c.target not in filled), key=lambda copy: place[copy.source])
    start = time.perf_counter()
    with torch.no_grad():
        scans, total = _pour_all(source, copies, parameters, progress)
        for name in plan.zeros:
            into = parameters[name]
            into.zero_() if isinstance(into, torch.Tensor) else into.fill(torch.zeros(into.shape))
        if not filled:  # by an earlier start, which made the checks
            for check in plan.checks:
                _check_equal(source, check, parameters[check.target], where)
    log.info("read %.1f MB from %s in %.1f s", total / 1e6, where, time.perf_counter() - start)
    report = report_of(scans, shapes, {copy.target: copy.source for copy in copies})
    if report.not_finite and not allow_nonfinite:
        raise CheckpointError(report.refusal(where))
    for warning in report.warnings(where):
        log.warning("%s", warning)
    return report


def _pour_all(
    source: Source, copies: list[Copy], parameters: Mapping[str, Target], progress: bool
) -> tuple[dict[str, Scan], int]:
    """Make all copies: what scans of the parameters show, and the bytes read."""
    pieces = [piece for copy in copies for piece in pieces_of(source, copy, parameters[copy.target])]
    total = sum(bytes_read(source, piece) for piece in pieces)
    scans: dict[str, Scan] = {}
    with progress_bar("loading weights", total, progress) as advance:
        for piece, scan in pour_all(source, pieces):
            name, shape = piece.copy.target, piece.into.shape
            start = piece.start * math.prod(shape[1:])
            scans[name] = scans[name].then(scan, start) if name in scans else scan
            advance(bytes_read(source, piece))
    return scans, total


def fill_dummy(parameters: Mapping[str, Target], seed: int) -> None:
    """Fill with random numbers that depend on `seed` and each parameter's name alone; norms with ones."""
    with torch.no_grad():
        for name, into in parameters.items():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            if name.endswith("norm.weight") and isinstance(into, torch.Tensor):
                into.fill_(1.0)
            elif isinstance(into, torch.Tensor):
                into.copy_(torch.empty(into.shape).normal_(0.0, DUMMY_STD, generator=generator))
            else:
                _pour_dummy(into, generator)


def _pour_dummy(sink: Sink, generator: torch.Generator) -> None:
    """The same numbers as a tensor would get, some rows at a time. (torch draws 16 numbers at once, so that pieces of
    a multiple of 16 make the sequence of the whole.)"""
    for start, stop in row_ranges(sink, 4):
        cols = sink.shape[1]
        sink.rows(start, stop).fill(torch.empty(stop - start, cols).normal_(0.0, DUMMY_STD, generator=generator))


def refuse_dtypes(source: Source, copies: Iterable[Copy], where: str) -> None:
    """Raise CheckpointError where what parameters are filled from holds no floats."""
    dtypes = {copy.source: source.tensors[copy.source].dtype for copy in copies}
    bad = {name: dtype for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES}
    if bad:
        name, dtype = next(iter(bad.items()))
        raise CheckpointError(
            f"{where}: {len(bad)} tensors have dtypes that are not read ({', '.join(sorted(set(bad.values())))}; "
            f"for instance {name} is {dtype}); if they are quantised, config.json must say how, else use one in "
            f"{', '.join(FLOAT_DTYPES)}"
        )


def _check_equal(source: Source, check: Copy, parameter: Target, where: str) -> None:
    """Raise CheckpointError unless tensor `check.source` equals `parameter`, compared some rows at a time."""
    staging, shape = Staging(source), tuple(parameter.shape)
    for start, stop in row_ranges(parameter, FLOAT_DTYPES[source.tensors[check.source].dtype].itemsize):
        theirs = staging.read(check, start, stop, shape)
        if isinstance(parameter, torch.Tensor):
            mine = parameter[start:stop]
            same = torch.equal(mine, theirs.to(mine))
        else:
            same = parameter.rows(start, stop).holds(theirs)
        if not same:
            raise CheckpointError(
                f"{where}: the config ties {check.source} to {check.target}, but the checkpoint holds a different "
                f"{check.source}; set tie_word_embeddings to false in config.json, or remove the tensor"
            )
