"""Routes that are drawn instead of computed, for tests of capacity with weights that mean nothing.

What a token is drawn depends on nothing but (seed, layer, its sequence's seed, its position), so runs can be repeated,
and nobody's routes depend on who shares a batch. What such a model says means nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.core.routing import MoeShape
from moesaic.experts.profile_file import RouteProfile, read_routes

FLAG = "simulate_routing"
FORMS = "uniform, zipf:EXPONENT (such as zipf:1.2) or replay:FILE"
MOST_EXPONENT = 10.0
GOLDEN = 0x9E3779B97F4A7C15

Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Simulation:
    """What to draw from.

    Attributes:
        kind: "uniform"; "zipf": the r-th most popular expert has weight r^-exponent (which expert that is, is drawn for
            each layer); or "replay": what was recorded.
        recorded: of "replay".
    """

    kind: str
    exponent: float = 0.0
    recorded: RouteProfile | None = None

    @classmethod
    def parse(cls, text: str) -> "Simulation":
        """What a flag says, with the file read that it names. Raises ConfigError."""
        kind, _, rest = text.partition(":")
        if text == "uniform":
            return cls("uniform")
        if kind == "zipf":
            try:
                exponent = float(rest)
            except ValueError:
                exponent = -1.0
            if not 0 <= exponent <= MOST_EXPONENT:
                raise ConfigError(f"{FLAG}: zipf takes an exponent from 0 to {MOST_EXPONENT:g}, got {rest!r}")
            return cls("zipf", exponent)
        if kind == "replay" and rest:
            try:
                return cls("replay", recorded=read_routes(rest))
            except CheckpointError as error:
                raise ConfigError(f"{FLAG}: {error}") from error
        raise ConfigError(f"{FLAG} must be {FORMS}, got {text!r}")


class SimulatedRoutes:
    """Draws for the layers of a model.

    Args:
        shape: the model's layers of experts.

    Raises:
        ConfigError: what was recorded is of other layers or experts.
    """

    def __init__(self, simulation: Simulation, shape: MoeShape, seed: int) -> None:
        self.simulation = simulation
        start = _mix(np.array([seed % 2**64], np.uint64))
        self._seeds = {layer.index: _mix(start + np.uint64(layer.index))[0] for layer in shape.layers}
        self._draw: dict[int, Callable[[Numbers, Numbers], NDArray[np.float32]]] = {}
        for layer in shape.layers:
            if simulation.recorded is not None:
                self._draw[layer.index] = self._recorded(simulation.recorded, layer.index, layer.num_experts)
            else:
                ranks = np.argsort(_uniform(self._of(layer.index, np.arange(layer.num_experts, dtype=np.uint64))))
                popularity = np.power(1.0 + np.argsort(ranks), -simulation.exponent, dtype=np.float64)
                self._draw[layer.index] = self._weighted(layer.index, popularity)

    def choice(self, layer: int, sequences: Numbers, positions: Numbers) -> NDArray[np.float32]:
        """What experts of tokens are chosen by, best first: `[T]` seeds and `[T]` positions -> `[T, E]`; an expert with
        less than 0 is not to be chosen."""
        return self._draw[layer](sequences, positions)

    def _weighted(self, layer: int, weights: NDArray[np.float64]) -> Callable[..., NDArray[np.float32]]:
        """Draws without replacement, with probabilities as the weights (Efraimidis and Spirakis 2006)."""
        experts = np.arange(len(weights), dtype=np.uint64)

        def draw(sequences: Numbers, positions: Numbers) -> NDArray[np.float32]:
            tokens = self._of(layer, sequences, positions)
            keys = np.log(_uniform(_mix(tokens[:, None] + experts * np.uint64(GOLDEN)))) / weights
            order = np.argsort(keys, axis=1)  # whole numbers: no two are equal in 32 bits
            places = np.empty_like(order)
            np.put_along_axis(places, order, np.arange(len(weights))[None], axis=1)
            return places.astype(np.float32)

        return draw

    def _recorded(self, profile: RouteProfile, layer: int, num_experts: int) -> Callable[..., NDArray[np.float32]]:
        """The recorded choices of one token after the other, from a place that each sequence is drawn; where single
        choices were not kept, draws as often as each expert was chosen."""
        rows = [row for row, index in enumerate(profile.layers) if index == layer]
        if not rows:
            raise ConfigError(f"{FLAG}: {profile.model!r} was recorded, which has no experts in layer {layer}")
        row = rows[-1]  # a layer's attention with experts stands first
        if profile.num_experts[row] != num_experts:
            raise ConfigError(
                f"{FLAG}: {profile.model!r} was recorded, with {profile.num_experts[row]} experts in layer {layer}, "
                f"and this model has {num_experts}"
            )
        if profile.stream is None:
            return self._weighted(layer, np.maximum(profile.counts[0, row, :num_experts], 1e-3).astype(np.float64))
        stream = profile.stream[:, row]  # [N, k]

        def draw(sequences: Numbers, positions: Numbers) -> NDArray[np.float32]:
            places = (_mix(sequences) + positions) % np.uint64(len(stream))
            ids = stream[places.astype(np.int64)].astype(np.int64)
            choice = np.full((len(ids), num_experts + 1), -1, np.float32)  # the last takes what is none
            merit = np.arange(ids.shape[1], 0, -1, dtype=np.float32)
            np.put_along_axis(choice, np.where(ids < 0, num_experts, ids), merit[None], axis=1)
            return choice[:, :num_experts]

        return draw

    def _of(self, layer: int, *numbers: Numbers) -> Numbers:
        """One number of all these, and of the layer's seed."""
        mixed = _mix(numbers[0] + self._seeds[layer])
        for more in numbers[1:]:
            mixed = _mix(mixed + more * np.uint64(GOLDEN))
        return mixed


def _mix(x: Numbers) -> Numbers:
    """SplitMix64 (Steele et al. 2014): a number of 64 bits that looks like none of its neighbours'."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(x: Numbers) -> NDArray[np.float64]:
    """In (0, 1]."""
    return ((x >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
