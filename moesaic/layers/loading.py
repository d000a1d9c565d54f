"""How a hand-written model's `load_weights` fills its layers, and the account of it: every part exactly once.

A layer's parameters are made visible as torch parameters, each with vLLM's `weight_loader(param, weight, shard_id)`.
What is kept packed is no tensor, so a parameter without storage (on the meta device) stands for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.errors import CheckpointError
from moesaic.layers.base import Layer
from moesaic.weights.staging import Target


class Parts:
    """One parameter's `weight_loader`: its parts, and how often each was filled.

    Args:
        name: of the parameter, for messages.
        parts: shard id -> where it goes; in order, along the first dimension. A parameter in one part has "" alone.
    """

    def __init__(self, name: str, parts: Mapping[str, Target]) -> None:
        self.name = name
        self.parts = dict(parts)
        self.times = dict.fromkeys(self.parts, 0)

    def __call__(self, param: nn.Parameter, loaded_weight: Tensor, shard_id: str | int | None = None) -> None:
        """Fill one part, or all from their concatenation.

        Raises:
            CheckpointError: there is no such part, or the weight has another shape.
        """
        if shard_id is not None:
            self._fill(str(shard_id), loaded_weight)
            return
        sizes = [part.shape[0] for part in self.parts.values()]
        if loaded_weight.dim() == 0 or loaded_weight.shape[0] != sum(sizes):
            raise CheckpointError(f"{self.name} has {sum(sizes)} rows, the weight is {list(loaded_weight.shape)}")
        for shard, rows in zip(self.parts, loaded_weight.split(sizes), strict=True):
            self._fill(shard, rows)

    def _fill(self, shard: str, weight: Tensor) -> None:
        where = f"{self.name}, shard {shard}" if shard else self.name
        if shard not in self.parts:
            raise CheckpointError(f"{self.name} has no shard {shard!r}; there are {', '.join(self.parts)}")
        fill(self.parts[shard], weight, where)
        self.times[shard] += 1

    def unfilled(self) -> list[str]:
        """Names of parts that nothing was loaded into."""
        return [self._called(shard) for shard, times in self.times.items() if times == 0]

    def repeated(self) -> list[str]:
        """Names of parts that were filled more than once."""
        return [self._called(shard) for shard, times in self.times.items() if times > 1]

    def _called(self, shard: str) -> str:
        return f"{self.name}.{shard}" if shard else self.name


class ExpertParts(Parts):
    """The `weight_loader` of experts: `(param, weight, weight_name, shard_id, expert_id)`, as vLLM's FusedMoE has it.

    Parts are called `{expert}.{shard}`; shards are w1 (gate), w3 (up) and w2 (down).
    """

    def __call__(  # type: ignore[override]
        self,
        param: nn.Parameter,
        loaded_weight: Tensor,
        weight_name: str = "",
        shard_id: str | None = None,
        expert_id: int | None = None,
    ) -> None:
        """Fill a shard of an expert; of all experts, stacked, where no expert is named; all shards where none is."""
        experts = list(dict.fromkeys(part.split(".")[0] for part in self.parts))
        if expert_id is None and loaded_weight.shape[0] != len(experts):
            raise CheckpointError(f"{self.name} has {len(experts)} experts, the weight is {list(loaded_weight.shape)}")
        chosen = [str(expert_id)] if expert_id is not None else experts
        for expert, weight in zip(chosen, [loaded_weight] if expert_id is not None else loaded_weight, strict=True):
            shards = [part for part in self.parts if part.split(".")[0] == expert]
            if shard_id is not None or not shards:
                self._fill(f"{expert}.{shard_id}", weight)
                continue
            for part, rows in zip(shards, weight.chunk(len(shards)), strict=True):
                self._fill(part, rows)


def fill(into: Target, weight: Tensor, where: str) -> None:
    """Put a weight in its place. Raises CheckpointError unless it has the place's shape."""
    if tuple(into.shape) != tuple(weight.shape):
        raise CheckpointError(f"{where} is {list(into.shape)}, the checkpoint's weight {list(weight.shape)}")
    with torch.no_grad():
        if isinstance(into, Tensor):
            into.copy_(weight)
        else:
            into.fill(weight)


def default_weight_loader(param: nn.Parameter, loaded_weight: Tensor) -> None:
    """Fill a parameter whole, by its own `weight_loader` where it has one."""
    loader = getattr(param, "weight_loader", None)
    if loader is not None:
        loader(param, loaded_weight)
    else:
        fill(param.data, loaded_weight, "a parameter")


def expose(model: nn.Module) -> list[Parts]:
    """Give every parameter of a model a `weight_loader`, stand-ins for packed ones among them, and list these."""
    loaders = []
    for path, module in _holders(model, ""):
        if isinstance(module, Layer):
            loaders += [_expose(module, name, path, parts) for name, parts in module.parameter_parts().items()]
            continue
        for name, parameter in module.named_parameters(recurse=False):
            loader = Parts(_join(path, name), {"": parameter.data})
            parameter.weight_loader = loader  # type: ignore[attr-defined]
            loaders.append(loader)
    return loaders


def _holders(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Layers that say what their parameters are, and whatever modules there are around them."""
    yield path, module
    if isinstance(module, Layer) and module.parameter_parts():
        return
    for name, child in module.named_children():
        yield from _holders(child, _join(path, name))


def _expose(layer: Layer, name: str, path: str, parts: Mapping[str, Target]) -> Parts:
    kind = ExpertParts if layer.of_experts else Parts
    loader = kind(_join(path, name), parts)
    parameter = layer._parameters.get(name)
    if parameter is None:
        parameter = nn.Parameter(torch.empty(_shape(parts, layer.of_experts), device="meta"), requires_grad=False)
        layer._parameters[name] = parameter  # beside an attribute of this name, which stays what computes
    parameter.weight_loader = loader  # type: ignore[attr-defined]
    return loader


def _shape(parts: Mapping[str, Target], of_experts: bool) -> Sequence[int]:
    shapes = [tuple(part.shape) for part in parts.values()]
    if not of_experts:
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])
    experts = len({part.split(".")[0] for part in parts})
    return (experts, sum(shape[0] for shape in shapes) // experts, *shapes[0][1:])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def dummy_targets(loaders: Sequence[Parts]) -> dict[str, Any]:
    """Everything to be filled, by name."""
    return {loader._called(shard): target for loader in loaders for shard, target in loader.parts.items()}
