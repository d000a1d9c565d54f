"""What live sequences ask of their routes, brought to where the routers' kernels find it.

Routers choose for all tokens in one call. Each row of it has a number; what the number means in a layer is in the
layer's `RouteTable`: 0 is the model's own way, the others are the rules of the sequences in the engine. So rows of
other sequences keep their bits and their speed, and recorded steps are replayed as ever, for a recorded call reads the
rows' numbers anew. Where some row wants more experts than the model's top_k, all rows have more places for them, by
powers of two, of which the others' stay empty; what is recorded has so many too.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from moesaic.core.batch import Batch
from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.core.routing import LayerShape, MoeShape, RequestRouting, fold
from moesaic.core.step import NewSequence
from moesaic.experts.custom import CustomRouting
from moesaic.experts.functions import RoutingFunctions
from moesaic.experts.simulated import SimulatedRoutes, Simulation
from moesaic.experts.stats import ExpertStats
from moesaic.kernels.route_table import RouteTable, Rule, RuledRows


class Steering:
    """Rules of a model's routers, by sequence.

    Args:
        device: of the routers.
        fixed: why their routes cannot be changed; "" where they can.
        stats: of routers that are not ours, and have no tables.

    Attributes:
        fixed: why routes cannot be changed; "" where they can.
        routings: what each live sequence with tags or rules asked for.
        custom: what decides beside the routers.
    """

    def __init__(self, device: torch.device, fixed: str = "", stats: ExpertStats | None = None) -> None:
        self.device = device
        self.fixed = fixed
        self._stats = stats
        self.routings: dict[int, RequestRouting] = {}
        self.custom = CustomRouting()
        self._tables: list[tuple[int, RouteTable]] = []  # by decoder layer
        self._rows = RuledRows()
        self._numbered: tuple[list[int], list[int]] | None = None  # of the last step: numbers, and tokens, by sequence
        self._numbers: dict[str, int] = {}  # key of a routing -> its number
        self._users: dict[int, set[int]] = {}  # number -> sequences
        self._number_of: dict[int, int] = {}  # sequence -> number
        self._rooms: dict[int, int] = {}  # number -> places that it needs, if more than the model's

    def table(self, index: int, num_experts: int, top_k: int) -> RouteTable:
        """The table of one more router, of decoder layer `index`."""
        self._tables.append((index, RouteTable(self._rows, num_experts, top_k)))
        return self._tables[-1][1]

    @property
    def shape(self) -> MoeShape | None:
        """The layers that route; None for a model without any."""
        layers = {LayerShape(index, table.num_experts, table.top_k) for index, table in self._tables}
        if self._stats is not None:
            layers |= {LayerShape(tap.layer, tap.num_experts, tap.top_k) for tap in self._stats.taps}
        return MoeShape(sorted(layers, key=lambda layer: layer.index), self.fixed) if layers else None

    @property
    def functions(self) -> RoutingFunctions:
        """The model's routing functions."""
        if self.custom.functions is None:
            shape = self.shape
            refused = self.fixed or (self.custom.refused if shape is not None else "")
            self.custom.functions = RoutingFunctions(shape, refused)
        return self.custom.functions

    def simulate(self, simulation: Simulation, seed: int) -> None:
        """Draw all routes from now on.

        Raises:
            ConfigError: the model has no experts, or others than were recorded; or its routes are not ours.
        """
        if self.fixed or self.shape is None:
            raise ConfigError(f"routes cannot be simulated: {self.fixed or 'this model has no experts'}")
        self.custom.simulate(SimulatedRoutes(simulation, self.shape, seed))

    @property
    def plain(self) -> bool:
        """Whether this step must be computed the plain way: a recording does less than it asks for."""
        return self.decided and self.custom.may_widen

    @property
    def decided(self) -> bool:
        """Whether something else than the routers decides in this step (`custom`)."""
        return self.custom.tokens is not None

    @property
    def room(self) -> int:
        """Places of a row's choices in this step, where that are more than the model's top_k; else 0."""
        return self._rows.room

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Sequences have come, or come back."""
        for new in sequences:
            self.custom.meet(new)
            if new.routing is None:
                continue
            self.routings[new.seq_id] = new.routing
            if new.routing.rules:
                number = self._number(new.routing)
                self._users[number].add(new.seq_id)
                self._number_of[new.seq_id] = number

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left."""
        self.custom.forget(seq_ids)
        for seq_id in seq_ids:
            routing = self.routings.pop(seq_id, None)
            number = self._number_of.pop(seq_id, None)
            if routing is None or number is None:
                continue
            self._users[number].discard(seq_id)
            if not self._users[number]:
                del self._users[number], self._numbers[routing.key]

    def begin(self, batch: Batch) -> None:
        """A step comes: number its rows."""
        numbers = [self._number_of.get(seq_id, 0) for seq_id in batch.seq_ids] if self._number_of else []
        numbered = (numbers, batch.query_lens_host) if any(numbers) else None
        if numbered != self._numbered:  # steps that follow each other are often alike
            self._numbered = numbered
            self._rows.set(np.repeat(np.array(numbers, dtype=np.int32), batch.query_lens_host) if numbered else None)
            self._rows.room = max((self._rooms.get(number, 0) for number in numbers), default=0)
        self.custom.begin(batch)

    def refuse(self, reason: str) -> None:
        """Some layer's routes turn out not to be ours.

        Raises:
            UnsupportedError: a sequence of this step counts on it.
        """
        self.fixed = reason
        if self._rows.rules is not None or self.custom.tokens is not None:
            raise UnsupportedError(f"routing cannot be changed: {reason}")

    def _number(self, routing: RequestRouting) -> int:
        """The number of a routing's rules, in all layers."""
        if routing.key not in self._numbers:
            number = next(n for n in range(1, len(self._users) + 2) if n not in self._users)
            self._numbers[routing.key], self._users[number] = number, set()
            self._numbered = [], []  # the number means something else now
            self._rooms.pop(number, None)
            made: dict[Any, Rule] = {}  # most layers are alike
            for index, table in self._tables:
                which = tuple(rule.is_for(index) for rule in routing.rules), table.num_experts, table.top_k
                if which not in made:
                    made[which] = self._rule(routing, LayerShape(index, table.num_experts, table.top_k))
                rule = made[which]
                table.set(number, rule)
                if rule.top_k > table.top_k:
                    needed = 1 << (rule.top_k - 1).bit_length()
                    self._rooms[number] = max(needed, self._rooms.get(number, 0))
        return self._numbers[routing.key]

    def _rule(self, routing: RequestRouting, layer: LayerShape) -> Rule:
        folded = fold(routing.rules, layer)
        banned = None
        if folded.banned:
            banned = torch.zeros(layer.num_experts, dtype=torch.bool, device=self.device)
            banned[list(folded.banned)] = True
        bias: Any = torch.tensor(folded.bias, dtype=torch.float32, device=self.device) if folded.bias else None
        return Rule(folded.top_k, folded.temperature, bias, banned)
