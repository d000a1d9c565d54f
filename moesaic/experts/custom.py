"""Routes that are not the model's own: behind each router's kernel, functions of a user's decide for the rows whose
scores they change, or all is drawn (`experts.simulated`); and the time that choosing takes is measured.

The kernel chooses for all rows first, by the rules of their requests. Functions are given the scores that these rules
leave; a row that they leave as it was keeps what the kernel chose, bit by bit. A replayed step is interrupted behind
each router; where functions may give tokens more experts than a recording has room for, steps are computed plainly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from time import monotonic, perf_counter

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.core.errors import ConfigError
from moesaic.core.log import get_logger
from moesaic.core.step import NewSequence
from moesaic.experts.function_choice import LastChanges, changes_of, choose_by_scores, refused
from moesaic.experts.function_types import DomainTags, RequestIds, RoutingInput
from moesaic.experts.functions import RoutingFunctions
from moesaic.experts.routing import Routing, RoutingKernels, choose_experts
from moesaic.experts.simulated import SimulatedRoutes
from moesaic.kernels.cpu.calls import Kernel
from moesaic.kernels.route_table import RouteTable
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
        if self.functions or self.simulated is not None:
            rows = np.repeat(np.arange(len(batch.seq_ids)), batch.query_lens_host)
            sequence = torch.from_numpy(rows).to(batch.positions.device)
            self.tokens = StepTokens(
                DomainTags([self._tags.get(seq_id, []) for seq_id in batch.seq_ids], sequence),
                batch.positions,
                RequestIds([[self._requests.get(seq_id, "")] for seq_id in batch.seq_ids], sequence),
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

    def spent(self, seconds: float) -> None:
        """Behind a router so many seconds were spent."""
        self._seconds += seconds

    def _in_kernels(self) -> float:
        """Seconds that this thread has spent in kernels of routing, ever."""
        return self._stages[0].kernels.route_seconds() if self._stages else 0.0


class Stage:
    """What comes behind one router's kernel."""

    def __init__(self, custom: CustomRouting, layer: int, kernels: RoutingKernels) -> None:
        self.custom = custom
        self.layer = layer
        self.kernels = kernels

    @property
    def active(self) -> bool:
        """Whether something else than the router decides in this step."""
        return self.custom.tokens is not None or self.custom.stops is not None

    def __call__(
        self,
        routing: Routing,
        logits: Tensor,
        spec: RouterSpec,
        correction: Tensor | None,
        expert_scale: Tensor | None,
        counts: Tensor | None,
        table: RouteTable | None,
    ) -> Routing:
        """What is decided instead of `routing`, by the router's logits `[T, E]`; `counts` `[E]` are put right.

        Raises:
            RoutingFunctionError: a function raised, or gave what cannot be chosen by.
        """
        asked = Asked(logits, spec, correction, expert_scale, counts, table)
        if self.custom.stops is None:
            return self._decide(routing, asked)
        if self.custom.simulated is None and logits.dtype is torch.float32:
            asked = replace(asked, scores=self.kernels.route_scores(logits, scoring=spec.scoring, cap=spec.cap))
        parts: dict[int, tuple[Routing, Asked]] = {}  # of the last step's size

        def decide(rows: int) -> None:
            if rows not in parts:
                parts.clear()
                parts[rows] = Routing(routing.ids[:rows], routing.weights[:rows]), asked.of(rows)
            with torch.inference_mode():
                self._decide(*parts[rows])

        self.custom.stops.append((len(Kernel.recorder.calls), decide))
        return routing

    def _decide(self, routing: Routing, asked: "Asked") -> Routing:
        start = perf_counter()
        routing = self._decided(routing, asked) if self.custom.simulated is None else self._drawn(routing, asked)
        self.custom.spent(perf_counter() - start)
        return routing

    def _decided(self, routing: Routing, asked: "Asked") -> Routing:
        """By functions."""
        given = self._given(asked)
        assert self.custom.functions is not None
        look = LastChanges(self.kernels.route_changes)
        decision = self.custom.functions(given, look)
        changes = changes_of(look, given, decision)
        if not changes.count:
            return routing
        scores, k = decision.scores, decision.k
        assert scores is not None and isinstance(k, Tensor)
        chosen = choose_by_scores(
            self.kernels,
            given.logits,
            scores,
            k if asked.ruled or k is not given.k else asked.spec.top_k,
            asked.spec,
            asked.correction,
            asked.expert_scale,
            changes.zeros,
        )
        if chosen.ids.shape[1] > routing.ids.shape[1]:
            routing = _widened(routing, chosen.ids.shape[1])
        self.kernels.route_replace(
            routing.ids, routing.weights, chosen.ids, chosen.weights, scores, changes.rows, asked.counts
        )
        return routing

    def _drawn(self, routing: Routing, asked: "Asked") -> Routing:
        """By lot: as many experts as each row was to have, with the weights that the router gives these."""
        tokens, simulated = self.custom.tokens, self.custom.simulated
        assert tokens is not None and simulated is not None
        positions = tokens.positions.cpu().numpy().astype(np.uint64)
        choice = torch.from_numpy(simulated.choice(self.layer, tokens.seeds, positions)).to(asked.logits.device)
        ungrouped = replace(asked.spec, top_k=routing.ids.shape[1], num_groups=1, top_groups=1)
        drawn = choose_experts(
            self.kernels.route, asked.logits, ungrouped, None, None, asked.expert_scale, choice=choice.contiguous()
        )
        unused = (choice.gather(1, drawn.ids.long()) < 0) | (routing.ids < 0)
        if asked.counts is not None:
            _count(asked.counts, routing.ids, -1)
        routing.ids.copy_(drawn.ids.masked_fill(unused, -1))
        routing.weights.copy_(drawn.weights.masked_fill(unused, 0.0))
        if asked.counts is not None:
            _count(asked.counts, routing.ids, 1)
        return routing

    def _given(self, asked: "Asked") -> RoutingInput:
        """What functions are given: logits and k as the rows' rules make them."""
        tokens, logits, scores = self.custom.tokens, asked.logits, asked.scores
        assert tokens is not None
        k = tokens.k(asked.spec.top_k)
        if scores is None or asked.ruled:
            logits = logits.float().contiguous()
            if asked.ruled:
                logits, k = asked.by_rules(logits)
            scores = self.kernels.route_scores(logits, scoring=asked.spec.scoring, cap=asked.spec.cap)
        return RoutingInput(self.layer, logits, scores, tokens.tags, tokens.positions, tokens.request_ids, k)


@dataclass(frozen=True)
class Asked:
    """What a router was asked, beside its logits `[T, E]`.

    Attributes:
        scores: `[T, E]` that its kernel makes of the logits as they are; None where they are not at hand.
    """

    logits: Tensor
    spec: RouterSpec
    correction: Tensor | None
    expert_scale: Tensor | None
    counts: Tensor | None
    table: RouteTable | None
    scores: Tensor | None = None

    @property
    def ruled(self) -> bool:
        """Whether rows have rules of their own."""
        return self.table is not None and self.table.active

    def of(self, rows: int) -> "Asked":
        """The first tokens."""
        return replace(self, logits=self.logits[:rows], scores=None if self.scores is None else self.scores[:rows])

    def by_rules(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and k `[T]` as the rows' rules make them."""
        assert self.table is not None
        logits, k = logits.clone(), torch.full((len(logits),), self.spec.top_k, device=logits.device)
        for number in self.table.rows.used:
            rows, rule = self.table.rows.rows_of(number, logits.device), self.table.rules[number]
            k[rows] = rule.top_k
            if number:
                ruled = rule.logits(logits[rows])
                logits[rows] = ruled if rule.banned is None else ruled.masked_fill(rule.banned, float("-inf"))
        return logits, k


def _widened(routing: Routing, width: int) -> Routing:
    """The same with room for more experts a token: `[T, width]`."""
    missing = width - routing.ids.shape[1]
    return Routing(F.pad(routing.ids, (0, missing), value=-1), F.pad(routing.weights, (0, missing)))


def _count(counts: Tensor, ids: Tensor, times: int) -> None:
    flat = ids.flatten().long()
    counts.index_add_(0, flat.clamp(min=0), (flat >= 0).long(), alpha=times)
