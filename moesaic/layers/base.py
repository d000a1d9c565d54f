"""What every layer is built with, and how a layer names the parameters it holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.distributed.groups import SINGLE, ProcessGroup
from moesaic.kernels.registry import Case, kernel

NamedViews = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class BuildContext:
    """Where and how layers are built.

    Attributes:
        group: the ranks that share each layer.
        backend: of the kernels; "auto" takes the best that can serve.
    """

    device: torch.device
    dtype: torch.dtype
    group: ProcessGroup = SINGLE
    backend: str = "auto"

    def parameter(self, *shape: int) -> nn.Parameter:
        """An unfilled parameter; loading fills each exactly once."""
        return nn.Parameter(torch.empty(*shape, device=self.device, dtype=self.dtype), requires_grad=False)

    def kernel(self, op: str) -> Callable[..., Any]:
        """The function that computes `op` here."""
        return kernel(Case(op, self.device.type, str(self.dtype)), self.backend)


class Layer(nn.Module):
    """A module that can say which canonical parameters it holds, as views of its storage."""

    def named_views(self) -> NamedViews:
        """(canonical name, view) of everything that loading must fill; by default, what the sub-layers name."""
        for name, child in self.named_children():
            yield from prefixed(name, child)


def prefixed(prefix: str, layer: nn.Module) -> NamedViews:
    """The named views of a layer (or of a list of layers), under `prefix`."""
    views = layer.named_views() if isinstance(layer, Layer) else _of_list(layer)
    for name, view in views:
        yield f"{prefix}.{name}", view


def _of_list(layers: nn.Module) -> NamedViews:
    for name, child in layers.named_children():
        yield from prefixed(name, child)
