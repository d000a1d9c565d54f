"""Filling a model: from a checkpoint by a plan, or with seeded random numbers. Memory stays at the model's own size
plus one tensor: what can be read in place is, the rest goes through one temporary."""

import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from moesaic.core.errors import CheckpointError
from moesaic.core.log import get_logger
from moesaic.weights.plan import Copy, plan_load
from moesaic.weights.rules import AnyRule
from moesaic.weights.safetensors_file import FLOAT_DTYPES
from moesaic.weights.sources import Source

log = get_logger(__name__)

CHECK_ELEMENTS = 1 << 22  # a tied copy is compared in pieces of at most this many elements
DUMMY_STD = 0.02


def load_weights(
    parameters: Mapping[str, torch.Tensor],
    rules: Iterable[AnyRule],
    source: Source,
    where: str,
    progress: bool = True,
) -> None:
    """Fill every parameter from `source`, in place.

    Args:
        parameters: canonical name -> view of the model's storage.
        where: the checkpoint's folder, for messages.
        progress: show how far it has come, on a terminal.

    Raises:
        CheckpointError: the checkpoint does not fill the model exactly; nothing was read then.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    plan = plan_load(shapes, rules, {name: i.shape for name, i in source.tensors.items()}, where)
    _refuse_dtypes(source, plan.copies + plan.checks, where)
    place = {name: i for i, name in enumerate(source.tensors)}
    copies = sorted(plan.copies, key=lambda copy: place[copy.source])
    total = sum(parameters[copy.target].nbytes for copy in copies)
    start = time.perf_counter()
    with torch.no_grad(), _progress(total, progress) as advance:
        for copy in copies:
            into = parameters[copy.target]
            source.read(copy.source, copy.index, into)
            advance(into.nbytes)
        for check in plan.checks:
            _check_equal(source, check, parameters[check.target], where)
    log.info("loaded %.1f MB from %s in %.1f s", total / 1e6, where, time.perf_counter() - start)


def fill_dummy(parameters: Mapping[str, torch.Tensor], seed: int) -> None:
    """Fill with random numbers that depend on `seed` and each parameter's name alone; norms with ones."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, DUMMY_STD, generator=generator))


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


def _check_equal(source: Source, check: Copy, parameter: torch.Tensor, where: str) -> None:
    """Raise CheckpointError unless tensor `check.source` equals `parameter`, compared some rows at a time."""
    step = max(1, CHECK_ELEMENTS // max(1, math.prod(parameter.shape[1:])))
    for row in range(0, parameter.shape[0], step):
        mine = parameter[row : row + step]
        theirs = torch.empty_like(mine)
        source.read(check.source, (slice(row, row + mine.shape[0]),), theirs)
        if not torch.equal(mine, theirs):
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
