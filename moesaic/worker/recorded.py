"""Decode steps by replay: the model's calls of such a step are recorded once, and made again in one call.

A step takes the plain way where a sequence has more than one token or draws none, where there are more sequences than
the recording has room for, where one has more experts than the model gives it, and where a hook on the model wants to
look in between. Both ways give the same bits.
"""

from collections.abc import Sequence
from time import perf_counter

from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.log import get_logger
from moesaic.kernels.cpu.replay import NotReplayable, Program, record
from moesaic.layers.kv_cache import Cache
from moesaic.models.served import ServedModel
from moesaic.worker.inputs import SingleTokens

logger = get_logger(__name__)


class RecordedStep:
    """The recording of a model's decode step over its caches, or none where it cannot be recorded."""

    def __init__(self, model: ServedModel, caches: Sequence[Cache], inputs: SingleTokens) -> None:
        self.model = model
        self.capacity = inputs.capacity
        self._stats = model.expert_stats
        self.program = self._record(caches, inputs)
        self._routes = list(self._stats.routes)  # the recording's own: each replay writes there
        self._stats.routes[:] = [None] * len(self._routes)

    def _record(self, caches: Sequence[Cache], inputs: SingleTokens) -> Program | None:
        batch = inputs.batch(inputs.capacity)
        start = perf_counter()
        try:
            program = record(lambda: self.model.logits(self.model(batch, caches)), inputs.capacity)
        except NotReplayable as reason:
            logger.info("decode steps are not recorded: %s", reason)
            return None
        logger.info(
            "decode steps of up to %d sequences are replayed: %d calls, recorded in %.2f s",
            self.capacity,
            len(program.names),
            perf_counter() - start,
        )
        return program

    def logits(self, batch: Batch) -> Tensor | None:
        """`[T, vocab]` of a step that can be replayed, good until the next; None for any other."""
        if self.program is None or not batch.replayable or self.model.hooked or self.model.steering.plain:
            return None
        self._stats.routes[:] = self._routes
        return self.program.run(batch.num_tokens)
