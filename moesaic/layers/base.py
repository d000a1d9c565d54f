"""What every layer is built with, and how a layer names the parameters it holds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.distributed.groups import SINGLE, ProcessGroup
from moesaic.kernels.registry import FAMILIES, FAMILY_OF, kernel

NamedViews = Iterator[tuple[str, Tensor]]
REFERENCE = dict.fromkeys(FAMILIES, "reference")


@dataclass(frozen=True)
class BuildContext:
    """Where and how layers are built.

    Attributes:
        dtype: of weights and of the KV cache.
        group: the ranks that share each layer.
        backends: who computes each family of operations.
        prefix: canonical name of the layer being built, with a dot at its end; the model's own is empty.
    """

    device: torch.device
    dtype: torch.dtype
    group: ProcessGroup = SINGLE
    backends: Mapping[str, str] = field(default_factory=lambda: REFERENCE)
    prefix: str = ""

    def under(self, name: str) -> "BuildContext":
        """The context of a part, whose canonical names begin with `name`."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    @property
    def activations(self) -> torch.dtype:
        """Dtype of what flows between operations, and of norms and biases."""
        return torch.float32 if self.backends["matrices"] == "cpu" else self.dtype

    def parameter(self, *shape: int) -> nn.Parameter:
        """An unfilled vector, such as a norm or a bias; loading fills each exactly once."""
        return nn.Parameter(torch.empty(*shape, device=self.device, dtype=self.activations), requires_grad=False)

    def matrix(self, name: str, rows: int, cols: int, gated: bool = False) -> Any:
        """An unfilled weight `[rows, cols]` = `[outputs, inputs]`, in the form that the backend multiplies by.

        Args:
            name: canonical, within the layer being built.
            gated: rows are gate's, then up's.
        """
        return nn.Parameter(torch.empty(rows, cols, device=self.device, dtype=self.dtype), requires_grad=False)

    def kernel(self, op: str) -> Callable[..., Any]:
        """The function that computes `op` here."""
        return kernel(op, self.backends[FAMILY_OF[op]])


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


def rows_of(matrix: Any, start: int, stop: int) -> Tensor:
    """Where loading puts rows [start, stop) of a matrix."""
    return matrix.data[start:stop]
