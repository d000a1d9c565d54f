"""What comes behind one router's kernel, where something else than the router decides.

The kernel chooses for all rows first, by the rules of their requests. Functions are given the scores that these rules
leave; a row that they leave as it was keeps what the kernel chose, bit by bit.

A replayed step is interrupted behind each router. What can be is recorded: the scores that functions are given before,
and for most routers the choice by what they made after, so that Python runs the functions and nothing else. Their
scores are looked at by the recording too, and complained of when the step is over.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.experts.function_choice import changes_of, choose_by_scores
from moesaic.experts.function_types import Look, RoutingInput
from moesaic.experts.routing import Routing, RoutingKernels, choose_experts
from moesaic.kernels.cpu.calls import Kernel
from moesaic.kernels.route_table import RouteTable
from moesaic.models.spec import RouterSpec

if TYPE_CHECKING:
    from moesaic.experts.custom import CustomRouting


class Stage:
    """What comes behind one router's kernel."""

    def __init__(self, custom: "CustomRouting", layer: int, kernels: RoutingKernels) -> None:
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
        if asked.scores is not None and asked.simple:
            self._record(routing, asked, asked.scores)
        else:
            self._stop(lambda rows: partial(self._decide, routing.first(rows), asked.first(rows)))
        return routing

    def _stop(self, make: Callable[[int], Callable[[], object]]) -> None:
        """Interrupt the recording here, in steps of so many rows by what `make` makes for them."""
        acts: dict[int, Callable[[], object]] = {}  # of the last step's size

        def act(rows: int) -> None:
            if rows not in acts:
                acts.clear()
                acts[rows] = make(rows)
            acts[rows]()

        assert self.custom.stops is not None
        self.custom.stops.append((len(Kernel.recorder.calls), act))

    def _record(self, routing: Routing, asked: "Asked", scores: Tensor) -> None:
        """Stop for the functions alone, and go on with what they make."""
        made = torch.empty_like(scores)
        self._stop(lambda rows: partial(self._call, routing.first(rows), asked.first(rows), made[:rows]))
        self.custom.checks.append(lambda rows: self._check(asked.first(rows), made[:rows]))
        changed = self.kernels.route_changes(scores, made, self.custom.found)
        chosen = choose_by_scores(
            self.kernels, asked.logits, made, asked.spec.top_k, asked.spec, None, asked.expert_scale, zeros=False
        )
        self.kernels.route_replace(
            routing.ids, routing.weights, chosen.ids, chosen.weights, made, changed, asked.counts
        )

    def _call(self, routing: Routing, asked: "Asked", made: Tensor) -> None:
        """What functions make of scores, into `made`. Where rows have rules of their own, all is decided at once."""
        assert self.custom.functions is not None and asked.scores is not None
        if asked.ruled:
            self._decide(routing, asked)
            made.copy_(asked.scores)
            return
        start = perf_counter()
        decision = self.custom.functions(self._given(asked), Look(self.kernels.route_changes), check_last=False)
        assert decision.scores is not None
        made.copy_(decision.scores)
        self.custom.spent(perf_counter() - start)

    def _check(self, asked: "Asked", made: Tensor) -> None:
        """Raise RoutingFunctionError where what functions made of a replayed step's scores cannot be chosen by."""
        assert self.custom.functions is not None
        self.custom.functions.check(made, self._given(asked))

    def _decide(self, routing: Routing, asked: "Asked") -> Routing:
        start = perf_counter()
        routing = self._decided(routing, asked) if self.custom.simulated is None else self._drawn(routing, asked)
        self.custom.spent(perf_counter() - start)
        return routing

    def _decided(self, routing: Routing, asked: "Asked") -> Routing:
        """By functions."""
        given = self._given(asked)
        assert self.custom.functions is not None
        look = Look(self.kernels.route_changes)
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
    """What a router was asked.

    Attributes:
        logits: `[T, E]`.
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

    @property
    def simple(self) -> bool:
        """Whether changed scores can be chosen by as they are: those of experts that are not to be chosen come last."""
        return self.correction is None and self.spec.num_groups == 1 and self.spec.scoring != "sparsemixer"

    def first(self, rows: int) -> "Asked":
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
