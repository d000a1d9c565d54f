"""How rows are numbered by what their sequences ask for, and experts that others route to."""

import numpy as np
import pytest
import torch

from moesaic.core.errors import UnsupportedError
from moesaic.core.routing import MoeShape, resolve
from moesaic.core.routing_options import RoutingOptions
from moesaic.core.sampling_params import SamplingParams
from moesaic.core.step import Advance, NewSequence, StepPlan
from moesaic.experts.fused import FusedMoE
from moesaic.experts.routing import Routing
from moesaic.experts.steering import Steering
from moesaic.layers.base import REFERENCE, BuildContext
from moesaic.layers.context import Construction, building
from moesaic.worker.inputs import SequenceTable


class World:
    """A steering of two layers and the table of sequences beside it."""

    def __init__(self):
        self.steering = Steering(torch.device("cpu"))
        self.tables = [self.steering.table(0, 4, 2), self.steering.table(2, 8, 2)]
        self.sequences = SequenceTable(8, 64, 16, "cpu")

    def step(self, counts, new=(), gone=()):
        """Tokens of each sequence; `new` maps sequences to options or None."""
        shape = self.steering.shape
        learned = []
        for seq_id, options in dict(new).items():
            routing = resolve(RoutingOptions.of(options), shape) if options else None
            params = SamplingParams()
            learned.append(NewSequence(seq_id, [1] * 40, 40, params, [], 0, routing=routing))
        advance = [Advance(seq_id, 0, count, [], False) for seq_id, count in counts.items()]
        self.sequences.apply(StepPlan(gone=list(gone), new=learned, advance=advance))
        self.steering.forget(gone)
        self.steering.meet(learned)
        self.steering.begin(self.sequences.batch(advance))
        return None if self.tables[0].rows.rules is None else self.tables[0].rows.rules.tolist()


@pytest.fixture
def world():
    return World()


def test_rows_have_the_numbers_of_their_sequences(world):
    assert world.step({0: 3, 1: 1}, new={0: None, 1: {"tags": ["x"]}}) is None
    assert list(world.steering.routings) == [1]
    assert world.step({0: 2, 2: 3, 1: 1, 3: 1}, new={2: {"top_k": 1}, 3: {"ban": [1]}}) == [0, 0, 1, 1, 1, 0, 2]
    assert [rule.top_k for rule in world.tables[0].rules] == [2, 1, 2]
    assert world.step({0: 1, 1: 1}) is None
    assert world.step({3: 2}) == [2, 2]


def test_equal_rules_share_a_number_and_free_ones_are_used_again(world):
    assert world.step({0: 1, 1: 1}, new={0: {"top_k": 1}, 1: {"top_k": 1, "tags": ["x"]}}) == [1, 1]
    assert world.step({1: 1, 2: 1}, new={2: {"ban": [3]}}, gone=[0]) == [1, 2]
    assert world.step({2: 1, 3: 1}, new={3: {"bias": {0: 5.0}}}, gone=[1]) == [2, 1]
    assert world.tables[0].rules[1].bias.tolist() == [5.0, 0.0, 0.0, 0.0]
    assert world.step({4: 1}, new={4: None}, gone=[2, 3]) is None
    assert world.step({5: 1}, new={5: {"top_k": 4}}) == [1]
    assert world.steering.room == 4
    assert world.step({6: 1}, new={6: {"top_k": 1}}, gone=[5]) == [1]
    assert world.steering.room == 0
    assert world.step({4: 1}, gone=[6]) is None
    assert not world.steering._users and not world.steering._numbers


def test_more_experts_than_the_model_gives_need_room(world):
    world.step({0: 1, 1: 1}, new={0: {"top_k": 3, "layers": [2]}, 1: {"top_k": 1}})
    assert world.steering.room == 4
    assert [table.width for table in world.tables] == [4, 4]
    world.step({0: 1, 2: 1}, new={2: {"top_k": 7, "layers": [2]}})
    assert world.steering.room == 8
    assert [table.width for table in world.tables] == [4, 8]
    world.step({1: 1})
    assert world.steering.room == 0
    assert [table.width for table in world.tables] == [2, 2]


def test_the_shape_is_that_of_the_routers(world):
    assert [(la.index, la.num_experts, la.top_k) for la in world.steering.shape.layers] == [(0, 4, 2), (2, 8, 2)]
    assert Steering(torch.device("cpu")).shape is None


def test_experts_that_a_class_routes_to_by_itself_cannot_be_steered(world):
    ctx = BuildContext(torch.device("cpu"), torch.float32, backends=dict.fromkeys(REFERENCE, "reference"))
    with building(Construction(ctx)):
        experts = FusedMoE(4, 2, 8, 8, prefix="experts")
    for _, view in experts.named_views():
        view.zero_()
    experts.steering = world.steering
    given = Routing(torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 2))
    experts(torch.zeros(1, 8), given)
    assert world.steering.shape == MoeShape(world.steering.shape.layers, "the model's class routes by its own code")
    world.tables[0].rows.set(np.ones(1, dtype=np.int32))
    with pytest.raises(UnsupportedError, match="routes by its own code"):
        experts(torch.zeros(1, 8), given)
