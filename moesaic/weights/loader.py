"""Filling a model: from a checkpoint by a plan, or with seeded random numbers. Memory stays at the model's own size
plus one small buffer: what is kept as it is stored is read in place, what is packed goes through the buffer."""

import math
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from moesaic.core.errors import CheckpointError
from moesaic.core.log import get_logger
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.plan import Copy, plan_load
from moesaic.weights.rules import AnyRule, Index, View
from moesaic.weights.sources import Source

log = get_logger(__name__)

STAGING_BYTES = 4 << 20  # small enough that what was just read is packed from the cache
PIECE_ROWS = 64  # pieces have a multiple of these many rows, so that panels are packed whole
DUMMY_STD = 0.02


class Sink(Protocol):
    """Where a weight goes that is not kept as a tensor, such as some rows of a packed matrix.

    One with an attribute `whole` that is true must be filled at once, not some rows at a time.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, cols)` of what is to be filled in."""

    def rows(self, start: int, stop: int) -> "Sink":
        """The sink of some of its rows."""

    def fill(self, tensor: torch.Tensor, alone: bool = False) -> None:
        """Take `[rows, cols]` in any floating dtype; `alone`: on this thread, for others are busy too."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether filling in this tensor would change nothing."""


Target: TypeAlias = torch.Tensor | Sink


def load_weights(
    parameters: Mapping[str, Target],
    rules: Iterable[AnyRule],
    source: Source,
    where: str,
    progress: bool = True,
    filled: Collection[str] = (),
) -> None:
    """Fill every parameter from `source`, in place.

    Args:
        parameters: canonical name -> view of the model's storage, or a sink.
        where: the checkpoint's folder, for messages.
        progress: show how far it has come, on a terminal.
        filled: names of parameters that are filled already; the checkpoint must hold them all the same.

    Raises:
        CheckpointError: the checkpoint does not fill the model exactly; nothing was read then.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    plan = plan_load(shapes, rules, {name: i.shape for name, i in source.tensors.items()}, where)
    _refuse_dtypes(source, plan.copies + plan.checks, where)
    place = {name: i for i, name in enumerate(source.tensors)}
    copies = sorted((c for c in plan.copies if c.target not in filled), key=lambda copy: place[copy.source])
    total = sum(_bytes_read(source, copy, shapes[copy.target]) for copy in copies)
    start = time.perf_counter()
    with torch.no_grad(), _progress(total, progress) as advance:
        _pour_all(source, copies, parameters, advance)
        for name in plan.zeros:
            into = parameters[name]
            into.zero_() if isinstance(into, torch.Tensor) else into.fill(torch.zeros(into.shape))
        if not filled:  # by an earlier start, which made the checks
            for check in plan.checks:
                _check_equal(source, check, parameters[check.target], where)
    log.info("read %.1f MB from %s in %.1f s", total / 1e6, where, time.perf_counter() - start)


def _pour_all(
    source: Source, copies: list[Copy], parameters: Mapping[str, Target], advance: Callable[[int], None]
) -> None:
    """Make all copies: each thread reads and packs pieces of its own, so that one reads while another packs."""
    pieces = [piece for copy in copies for piece in _pieces(source, copy, parameters[copy.target])]
    threads = torch.get_num_threads()
    staging = Staging(source)
    if threads == 1:
        for piece in pieces:
            advance(staging.pour(piece))
        return
    with ThreadPoolExecutor(threads, "load") as pool:
        try:
            for count in pool.map(staging.pour, pieces):
                advance(count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the tensor that `copy` names, and where they go; a tensor takes all of its rows at once."""

    copy: Copy
    into: Target
    start: int
    stop: int


def _pieces(source: Source, copy: Copy, into: Target) -> Iterator[Piece]:
    if isinstance(into, torch.Tensor) or copy.view is not None:
        yield Piece(copy, into, 0, into.shape[0])
        return
    for start, stop in _row_ranges(into, FLOAT_DTYPES[source.tensors[copy.source].dtype].itemsize):
        yield Piece(copy, into, start, stop)


def _row_ranges(into: Target, itemsize: int) -> Iterator[tuple[int, int]]:
    """Rows of a tensor in pieces that the staging buffer holds."""
    shape = tuple(into.shape)
    row_bytes = max(1, math.prod(shape[1:]) * itemsize)
    step = max(1, STAGING_BYTES // row_bytes // PIECE_ROWS) * PIECE_ROWS
    if getattr(into, "whole", False):
        step = shape[0]
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class Staging:
    """Buffers between a source and sinks, one a thread: rows are read into it in the source's own dtype."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._local = threading.local()

    def pour(self, piece: Piece) -> int:
        """Read a piece to where it goes; the bytes read."""
        copy, into = piece.copy, piece.into
        if copy.view is not None:
            return self._pour_view(copy, copy.view, into)
        if isinstance(into, torch.Tensor):
            self._source.read(copy.source, copy.index, into)
            return _bytes_read(self._source, copy, tuple(into.shape))
        rows = self.read(copy, piece.start, piece.stop, into.shape)
        into.rows(piece.start, piece.stop).fill(rows, alone=True)
        return _bytes_read(self._source, copy, tuple(rows.shape))

    def _pour_view(self, copy: Copy, view: View, into: Target) -> int:
        """Read a part whole, and take of it what is wanted."""
        dtype = FLOAT_DTYPES[self._source.tensors[copy.source].dtype]
        part = self._take(math.prod(view.shape) * dtype.itemsize).view(dtype).view(view.shape)
        self._source.read(copy.source, copy.index, part)
        wanted = view.take(part)
        if isinstance(into, torch.Tensor):
            into.copy_(wanted)
        else:
            into.fill(wanted.contiguous(), alone=True)
        return _bytes_read(self._source, copy, view.shape)

    def read(self, copy: Copy, start: int, stop: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Rows [start, stop) of what `copy` names, good until this thread reads the next."""
        dtype = FLOAT_DTYPES[self._source.tensors[copy.source].dtype]
        count = (stop - start) * math.prod(shape[1:])
        rows = self._take(count * dtype.itemsize).view(dtype).view(stop - start, *shape[1:])
        self._source.read(copy.source, rows_of(copy.index, start, stop), rows)
        return rows

    def _take(self, nbytes: int) -> torch.Tensor:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._local.buffer = torch.empty(nbytes, dtype=torch.uint8)
        return buffer[:nbytes]


def rows_of(index: Index, start: int, stop: int) -> Index:
    """Rows [start, stop) of the part of a tensor that `index` (ints, then at most one slice) names."""
    if index and isinstance(index[-1], slice):
        first = int(index[-1].start)
        return (*index[:-1], slice(first + start, first + stop))
    return (*index, slice(start, stop))


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
    for start, stop in _row_ranges(sink, 4):
        cols = sink.shape[1]
        sink.rows(start, stop).fill(torch.empty(stop - start, cols).normal_(0.0, DUMMY_STD, generator=generator))


def _refuse_dtypes(source: Source, copies: Iterable[Copy], where: str) -> None:
    dtypes = {copy.source: source.tensors[copy.source].dtype for copy in copies}
    bad = {name: dtype for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES}
    if bad:
        name, dtype = next(iter(bad.items()))
        raise CheckpointError(
            f"{where}: {len(bad)} tensors have dtypes that are not read ({', '.join(sorted(set(bad.values())))}; "
            f"for instance {name} is {dtype}); quantised checkpoints are not supported, use one in "
            f"{', '.join(FLOAT_DTYPES)}"
        )


def _bytes_read(source: Source, copy: Copy, shape: tuple[int, ...]) -> int:
    itemsize: int = FLOAT_DTYPES[source.tensors[copy.source].dtype].itemsize
    return math.prod(shape) * itemsize


def _check_equal(source: Source, check: Copy, parameter: Target, where: str) -> None:
    """Raise CheckpointError unless tensor `check.source` equals `parameter`, compared some rows at a time."""
    staging, shape = Staging(source), tuple(parameter.shape)
    for start, stop in _row_ranges(parameter, FLOAT_DTYPES[source.tensors[check.source].dtype].itemsize):
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


@contextmanager
def _progress(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A function that takes the bytes done since its last call; a bar on stderr where that is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
