"""Decode steps by replay: the model's calls of such a step are recorded once, and made again in one call.

A step takes the plain way where a sequence has more than one token or draws none, where there are more sequences than
the recording has room for, and where a hook on the model wants to look in between. Both ways give the same bits.
Requests that want more experts a token than the model has are recorded with room for them when they first come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.log import get_logger
from moesaic.experts.routing import Routing
from moesaic.kernels.cpu.replay import NotReplayable, Program, record
from moesaic.layers.kv_cache import Cache
from moesaic.models.served import ServedModel
from moesaic.worker.inputs import SingleTokens

logger = get_logger(__name__)


@dataclass(frozen=True)
class Recording:
    """A recorded step.

    Attributes:
        routes: where each replay of it writes its routes.
        stops: where it is interrupted, and what decides there over routes.
    """

    program: Program
    routes: list[Routing | None]
    stops: list[tuple[int, Callable[[int], None]]]

    def run(self, rows: int) -> Tensor:
        """The output's first `rows` rows, by the inputs' first."""
        if not self.stops:
            return self.program.run(rows)
        with torch.inference_mode():
            return self.program.run_between(rows, self.stops)


class RecordedStep:
    """The recordings of a model's decode step over its caches, or none where it cannot be recorded."""

    def __init__(self, model: ServedModel, caches: Sequence[Cache], inputs: SingleTokens) -> None:
        self.model = model
        self.caches = caches
        self.capacity = inputs.capacity
        self._inputs = inputs
        self._stats = model.expert_stats
        # by the room that they have for choices of experts, and by whether something else than routers decides
        self._recordings = {(0, False): self._record()}

    @property
    def program(self) -> Program | None:
        """The step as the model is; None where it cannot be recorded."""
        recording = self._recordings[0, False]
        return None if recording is None else recording.program

    def _record(self) -> Recording | None:
        steering, count = self.model.steering, self.capacity
        room = steering.room
        stops: list[tuple[int, Callable[[int], None]]] | None = [] if steering.decided else None
        batch = replace(
            self._inputs.batch(count), seq_lens_host=[1] * count, table_rows_host=[0] * count, seq_ids=[0] * count
        )
        start, before = perf_counter(), list(self._stats.routes)
        steering.custom.stops, steering.custom.checks, tokens = stops, [], steering.custom.tokens
        steering.custom.tokens = None
        try:
            program = record(lambda: self.model.logits(self.model(batch, self.caches)), count)
            if stops:
                stops.append((len(program.names), steering.custom.last_stop()))
            recording = Recording(program, list(self._stats.routes), stops or [])
        except NotReplayable as reason:
            logger.info("decode steps are not recorded: %s", reason)
            return None
        finally:
            self._stats.routes[:] = before
            steering.custom.stops, steering.custom.tokens = None, tokens
        logger.info(
            "decode steps of up to %d sequences%s are replayed: %d calls, recorded in %.2f s",
            count,
            f" and {room} experts a token" if room else "",
            len(program.names),
            perf_counter() - start,
        )
        return recording

    def logits(self, batch: Batch) -> Tensor | None:
        """`[T, vocab]` of a step that can be replayed, good until the next; None for any other."""
        steering = self.model.steering
        if not batch.replayable or self.model.hooked or steering.plain or self.program is None:
            return None
        kind = steering.room, steering.decided
        if kind not in self._recordings:
            self._recordings[kind] = self._record()
        recording = self._recordings[kind]
        if recording is None:
            return None
        self._stats.routes[:] = recording.routes
        return recording.run(batch.num_tokens)
