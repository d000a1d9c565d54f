"""Simulated routes: what is drawn, by whom it is not influenced, and what cannot be drawn by."""

import numpy as np
import pytest

from moesaic.core.errors import ConfigError
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.experts.profile_file import RouteProfile, write_routes
from moesaic.experts.simulated import SimulatedRoutes, Simulation

E, K, LAYERS = 16, 4, (1, 2)
SHAPE = MoeShape([LayerShape(layer, E, K) for layer in LAYERS])


def drawn(text, sequences, positions, layer=1, seed=0, k=K):
    """Ids `[T, k]` of the best, best first."""
    routes = SimulatedRoutes(Simulation.parse(text), SHAPE, seed)
    choice = routes.choice(layer, np.array(sequences, np.uint64), np.array(positions, np.uint64))
    return np.argsort(-choice, axis=1, kind="stable")[:, :k]


def grid(sequences=40, positions=100):
    return np.repeat(np.arange(sequences), positions), np.tile(np.arange(positions), sequences)


@pytest.mark.parametrize("text", ["uniform", "zipf:1.2"])
def test_draws_depend_on_seed_layer_sequence_and_position_alone(text):
    sequences, positions = grid(5, 20)
    whole = drawn(text, sequences, positions)
    assert (drawn(text, sequences, positions) == whole).all()
    for row in (0, 33, 99):
        assert (drawn(text, sequences[row : row + 1], positions[row : row + 1])[0] == whole[row]).all()
    for other in (
        drawn(text, sequences, positions, layer=2),
        drawn(text, sequences, positions, seed=1),
        drawn(text, sequences + 1, positions),
        drawn(text, sequences, positions + 1),
    ):
        assert (other != whole).any(1).mean() > 0.9
    assert all(len(set(ids)) == K for ids in whole.tolist())


def test_uniform_draws_are_uniform():
    counts = np.bincount(drawn("uniform", *grid()).ravel(), minlength=E)
    expected = 4000 * K / E
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 45  # of 15 degrees of freedom, beyond it lies 1 in 10000
    pairs = np.zeros((E, E))
    for ids in drawn("uniform", *grid()):
        pairs[np.ix_(ids, ids)] += 1
    off = pairs[~np.eye(E, dtype=bool)]
    assert off.min() > 0.7 * off.mean() and off.max() < 1.3 * off.mean()


def test_zipf_draws_the_first_choice_as_often_as_it_says():
    first = np.bincount(drawn("zipf:1.2", *grid(), k=1).ravel(), minlength=E)
    weights = np.arange(1, E + 1) ** -1.2
    expected = 4000 * weights / weights.sum()
    assert (np.abs(np.sort(first)[::-1] - expected) < 5 * np.sqrt(expected) + 3).all()
    favourites = {np.bincount(drawn("zipf:2", *grid(), layer=layer, k=1).ravel()).argmax() for layer in LAYERS}
    favourites |= {np.bincount(drawn("zipf:2", *grid(), seed=seed, k=1).ravel()).argmax() for seed in range(4)}
    assert len(favourites) > 1  # not always expert 0
    even = np.bincount(drawn("zipf:0", *grid()).ravel(), minlength=E)
    assert even.max() < 1.2 * even.min()


@pytest.fixture
def recorded(tmp_path):
    """A function: stream `[N, L, k]` or None, and what else to change -> path of a file of routes."""

    def write(stream, layers=LAYERS, experts=E, counts=None):
        profile = RouteProfile(
            model="recorded",
            layers=list(layers),
            num_experts=[experts] * len(layers),
            top_k=[K] * len(layers),
            tags=[],
            tokens=9,
            tokens_of_tags=[],
            tags_left_out=False,
            counts=np.ones((1, len(layers), experts), np.int64) if counts is None else counts,
            weights=np.ones((1, len(layers), experts)),
            pairs=np.zeros((len(layers), experts * (experts - 1) // 2), np.int32),
            stream=stream,
        )
        write_routes(profile, str(tmp_path / "routes.safetensors"))
        return f"replay:{tmp_path / 'routes.safetensors'}"

    return write


def test_a_recording_is_replayed_token_after_token(recorded):
    random = np.random.default_rng(0)
    stream = np.argsort(random.random((50, 2, E)), axis=2)[:, :, :K].astype(np.int16)
    stream[7, :, 2:] = -1  # a token that had two experts
    text = recorded(stream)
    for layer, row in ((1, 0), (2, 1)):
        whole = drawn(text, np.full(120, 5), np.arange(120), layer)
        starts = [s for s in range(50) if (whole[0] == stream[s, row]).all()]
        [start] = starts
        for position in range(120):
            expected = stream[(start + position) % 50, row]
            used = expected[expected >= 0]
            assert (whole[position, : len(used)] == used).all()
    routes = SimulatedRoutes(Simulation.parse(text), SHAPE, 0)
    all_places = routes.choice(1, np.full(50, 5, np.uint64), np.arange(50, dtype=np.uint64))
    assert sorted((all_places >= 0).sum(1).tolist()) == [2] + [K] * 49
    others = {tuple(drawn(text, [sequence], [0])[0]) for sequence in range(20)}
    assert len(others) > 5  # sequences begin at different places


def test_a_recording_of_counts_is_drawn_by_them(recorded):
    counts = np.zeros((1, 2, E), np.int64)
    counts[0, 0, [3, 5, 7, 9]] = [1000, 1000, 1000, 3000]
    text = recorded(None, counts=counts)
    assert all(sorted(ids) == [3, 5, 7, 9] for ids in drawn(text, *grid(4, 50)).tolist())
    first = np.bincount(drawn(text, *grid(), k=1).ravel(), minlength=E)
    assert abs(first[9] - 2000) < 200


@pytest.mark.parametrize(
    "text, words",
    [
        ("random", "must be uniform, zipf:EXPONENT"),
        ("uniform:3", "must be uniform"),
        ("zipf", "an exponent from 0 to 10, got ''"),
        ("zipf:-1", "an exponent"),
        ("zipf:nan", "an exponent"),
        ("zipf:many", "got 'many'"),
        ("replay:", "must be uniform"),
        ("replay:/no/such/file", "/no/such/file"),
    ],
)
def test_what_cannot_be_drawn_by(text, words):
    with pytest.raises(ConfigError, match=words):
        Simulation.parse(text)


def test_recordings_of_other_models_are_refused(recorded):
    for options, words in (
        ({"layers": (1, 3)}, "no experts in layer 2"),
        ({"experts": 8}, "8 experts in layer 1, and this model has 16"),
    ):
        simulation = Simulation.parse(recorded(None, **options))
        with pytest.raises(ConfigError, match=words):
            SimulatedRoutes(simulation, SHAPE, 0)
