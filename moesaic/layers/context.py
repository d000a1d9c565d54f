"""What the layers of a hand-written model find without being handed it: while it is built, where and how; while it
runs, the step and its caches.

The generic decoder hands its layers a `BuildContext`, and each forward a `Step`. A class in vLLM's conventions knows
sizes and prefixes alone, and its forward takes `input_ids` and `positions`: the rest is here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.core.formats import WeightFormat
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.kv_cache import KVCache, TiledCache
from moesaic.layers.step import Step
from moesaic.weights.quantization import QuantizationPlan

LinearMethod = WeightFormat | str | None


@dataclass(frozen=True)
class RouterNote:
    """A layer that chooses experts, as it said of itself."""

    prefix: str
    layer: Any
    num_experts: int
    top_k: int


@dataclass
class Construction:
    """A hand-written model while it is built, and what its layers said of themselves.

    Attributes:
        layers: by prefix; layers without a prefix are not in it.
        planned: those of them whose formats the plan of `ctx.formats` decides.
        attentions: by prefix, in order; each has a cache of its own.
        asked: what the layers ask of kernels, by family of operations: options of `kernels.registry.Case`.
        quantised: some layers may be, by the plan of `ctx.formats`.
        routers: all that route.
    """

    ctx: BuildContext
    quantised: bool = False
    layers: dict[str, Layer] = field(default_factory=dict)
    planned: dict[str, Layer] = field(default_factory=dict)
    attentions: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, list[tuple[tuple[str, Any], ...]]] = field(default_factory=dict)
    routers: list[RouterNote] = field(default_factory=list)

    def ask(self, family: str, **options: Any) -> None:
        """Note that a layer needs this of a family of operations."""
        self.asked.setdefault(family, []).append(tuple(options.items()))


@dataclass(frozen=True)
class Running:
    """A forward pass under way.

    Attributes:
        caches: by the prefix of their attention.
    """

    step: Step
    caches: Mapping[str, KVCache | TiledCache]


_construction: ContextVar[Construction | None] = ContextVar("construction", default=None)
_running: ContextVar[Running | None] = ContextVar("running", default=None)


@contextmanager
def building(construction: Construction) -> Iterator[Construction]:
    """Layers made within belong to this model."""
    token = _construction.set(construction)
    try:
        yield construction
    finally:
        _construction.reset(token)


@contextmanager
def running(step: Step, caches: Mapping[str, KVCache | TiledCache]) -> Iterator[None]:
    """Layers called within compute this step."""
    token = _running.set(Running(step, caches))
    try:
        yield
    finally:
        _running.reset(token)


def current_construction() -> Construction:
    """The model that is being built. Raises ConfigError where none is."""
    construction = _construction.get()
    if construction is None:
        raise ConfigError(
            "a layer without ctx can be made only while its model is built: in the model class's __init__, or within "
            "`with building(Construction(BuildContext(device, dtype))):`"
        )
    return construction


def find_running() -> Running | None:
    """The step that is being computed, if one is."""
    return _running.get()


def current_running() -> Running:
    """The step that is being computed. Raises ConfigError outside of one."""
    found = find_running()
    if found is None:
        raise ConfigError(
            "attention was called outside of a step: the engine's runner says which tokens are in the batch and where "
            "their caches are, so call the model through LLM, or within `with running(step, caches):`"
        )
    return found


def context_of(
    layer: Layer,
    ctx: BuildContext | None,
    prefix: str,
    linear_method: LinearMethod = None,
    *,
    plain: bool = False,
    activation: str | None = None,
) -> BuildContext:
    """Where and how `layer` is built: in `ctx`, or under `prefix` of the hand-written model that is being built.

    Args:
        linear_method: how its weights are kept: a format, or its name in a quantization config (`w4a16:32`, `none`);
            None for what the engine's arguments say of this prefix.
        plain: it is not quantised unless its linear_method says so.
        activation: what its kernel must know, besides multiplying.

    Raises:
        ConfigError: no model is being built; another layer has this prefix; or there is none, and by it a quantised
            model would know this layer's format.
        UnsupportedError: a quantised format, where no C++ kernels compute.
    """
    if ctx is not None:
        return ctx
    construction = current_construction()
    ctx = construction.ctx
    if activation is not None:
        construction.ask("matrices", activation=activation)
    if prefix:
        if prefix in construction.layers:
            raise ConfigError(f"two layers have the prefix {prefix!r}: each needs one of its own")
        construction.layers[prefix] = layer
        ctx = ctx.under(prefix.removeprefix("model."))
    if linear_method is None and not plain:
        if construction.quantised and not prefix:
            raise ConfigError(f"a {type(layer).__name__} has no prefix, by which its format is chosen; give it one")
        if prefix:
            construction.planned[prefix] = layer
        return ctx
    return replace(ctx, formats=_constant(ctx, linear_method or "none"))


def _constant(ctx: BuildContext, method: WeightFormat | str) -> Any:
    """A function from names to always the same format."""
    if isinstance(method, str):
        method = QuantizationPlan(str(ctx.dtype).removeprefix("torch.")).format_called(method)  # type: ignore[arg-type]
    if method.quantised and ctx.backends["matrices"] != "cpu" and ctx.device != torch.device("meta"):
        raise UnsupportedError(f"linear_method {method} needs the C++ kernels, but plain torch computes here")
    return lambda name: method
