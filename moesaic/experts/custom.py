"""Routes that are not the model's own: functions of a user's decide for the rows whose scores they change, or all is
drawn (`experts.simulated`); and the time that choosing takes is measured. `experts.stage` says how.

Where functions may give tokens more experts than a recording has room for, steps are computed plainly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.errors import ConfigError
from moesaic.core.log import get_logger
from moesaic.core.step import NewSequence
from moesaic.experts.function_choice import refused
from moesaic.experts.function_types import DomainTags, RequestIds
from moesaic.experts.functions import RoutingFunctions
from moesaic.experts.routing import RoutingKernels
from moesaic.experts.simulated import SimulatedRoutes
from moesaic.experts.stage import Stage
from moesaic.kernels.reference_router import FAULTS
from moesaic.models.spec import RouterSpec

logger = get_logger(__name__)

ATTENTION = "its experts are parts of attention, whose routes are the model's own"
SLOW_SHARE, SLOW_SECONDS = 0.1, 0.001  # of a step; in a layer
WARN_SECONDS = 60.0


@dataclass
class StepTokens:
    """The T tokens of a step, as functions see them; `seeds` `[T]` are those of their sequences."""

    tags: DomainTags
    positions: Tensor
    request_ids: RequestIds
    seeds: npt.NDArray[np.uint64]
    _ks: dict[int, Tensor] = field(default_factory=dict)

    def k(self, top_k: int) -> Tensor:
        """As many experts for each token: `[T]` int64, made once a step; not to be written into."""
        if top_k not in self._ks:
            self._ks[top_k] = torch.full_like(self.positions, top_k, dtype=torch.int64)
        return self._ks[top_k]


class CustomRouting:
    """What decides beside the routers of a model, and the tokens of the step.

    Attributes:
        functions: those registered; None until the model is complete.
        simulated: what all routes are drawn by; None for real ones.
        tokens: of the step; None where nothing decides.
        stops: while a step is recorded, where and how a replay of it is to be decided; else None.
        checks: likewise, what raises where a layer's scores are none to choose by.
        found: `[2]` int64, where replayed steps say what functions have made of scores (`route_changes`).
    """

    def __init__(self) -> None:
        self.functions: RoutingFunctions | None = None
        self.simulated: SimulatedRoutes | None = None
        self.tokens: StepTokens | None = None
        self.stops: list[tuple[int, Callable[[int], None]]] | None = None
        self._refused = ""
        self._stages: list[Stage] = []
        self._tags: dict[int, list[str]] = {}  # by sequence
        self._requests: dict[int, str] = {}
        self._seeds: dict[int, int] = {}
        self._seconds = 0.0  # in functions, and in choosing by what they made
        self._kernel_seconds = 0.0
        self._warned: dict[str, float] = {}  # when, by function
        self.found = torch.zeros(2, dtype=torch.int64)
        self.checks: list[Callable[[int], None]] = []

    def stage(self, layer: int, spec: RouterSpec, kernels: RoutingKernels) -> "Stage":
        """The place behind one more router, of decoder layer `layer`."""
        self._refused = self._refused or refused(spec)
        self._stages.append(Stage(self, layer, kernels))
        return self._stages[-1]

    @property
    def refused(self) -> str:
        """Why functions cannot work with the model's experts, if it has any; "" where they can."""
        if self.simulated is not None:
            return "all routes are simulated"
        return self._refused if self._stages else ATTENTION

    def simulate(self, simulated: SimulatedRoutes) -> None:
        """Draw all routes from now on. Raises ConfigError where functions decide, or there is nothing to draw for."""
        if not self._stages:
            raise ConfigError(f"routes cannot be simulated: {ATTENTION}")
        if self.functions:
            raise ConfigError("simulate_routing and routing functions exclude each other: choose one")
        self.simulated = simulated
        logger.warning("routes are SIMULATED: experts are drawn by lot, and what the model says means nothing")

    @property
    def may_widen(self) -> bool:
        """Whether a token may get more experts than its request asks for: functions with the full signature set k."""
        return any(function.signature == "full" for function in self.functions or ())

    def meet(self, new: NewSequence) -> None:
        """A sequence has come, or comes back."""
        self._tags[new.seq_id] = new.routing.tags if new.routing is not None else []
        self._requests[new.seq_id] = new.request_id
        self._seeds[new.seq_id] = new.seed

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left."""
        for seq_id in seq_ids:
            self._tags.pop(seq_id, None)
            self._requests.pop(seq_id, None)
            self._seeds.pop(seq_id, None)

    def begin(self, batch: Batch) -> None:
        """A step comes."""
        self._seconds, self._kernel_seconds = 0.0, self._in_kernels()
        self.tokens = None
        self.found.zero_()
        if self.functions or self.simulated is not None:
            rows = np.repeat(np.arange(len(batch.seq_ids)), batch.query_lens_host)
            sequence = torch.from_numpy(rows).to(batch.positions.device)
            single = len(rows) == len(batch.seq_ids)
            self.tokens = StepTokens(
                DomainTags([self._tags.get(seq_id, []) for seq_id in batch.seq_ids], sequence, single),
                batch.positions,
                RequestIds([[self._requests.get(seq_id, "")] for seq_id in batch.seq_ids], sequence, single),
                np.array([self._seeds.get(seq_id, 0) for seq_id in batch.seq_ids], np.uint64)[rows],
            )

    def finish(self, step_seconds: float) -> float:
        """The step is over: seconds that choosing experts took in it, over all layers. Warns of slow functions.

        Args:
            step_seconds: of the whole step.
        """
        self.tokens = None
        for function in self.functions or ():
            seconds, function.seconds = function.seconds, 0.0
            slow = seconds > max(SLOW_SHARE * step_seconds, SLOW_SECONDS * len(self._stages))
            if slow and monotonic() - self._warned.get(function.name, -WARN_SECONDS) >= WARN_SECONDS:
                self._warned[function.name] = monotonic()
                logger.warning(
                    "the routing function %r is slow: %.1f ms of a step of %.1f ms, in %d layers (said once a minute)",
                    function.name,
                    1e3 * seconds,
                    1e3 * step_seconds,
                    len(self._stages),
                )
        return self._seconds + self._in_kernels() - self._kernel_seconds

    def last_stop(self) -> Callable[[int], None]:
        """What comes at the end of the step that is being recorded: RoutingFunctionError, where functions have made
        scores that none can be chosen by."""
        checks, self.checks = self.checks, []

        def stop(rows: int) -> None:
            if self.found[1].item() & FAULTS:
                for check in checks:
                    check(rows)

        return stop

    def spent(self, seconds: float) -> None:
        """Behind a router so many seconds were spent."""
        self._seconds += seconds

    def _in_kernels(self) -> float:
        """Seconds that this thread has spent in kernels of routing, ever."""
        return self._stages[0].kernels.route_seconds() if self._stages else 0.0
