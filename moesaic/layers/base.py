"""What every layer is built with, and how a layer names the parameters it holds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.formats import Kind, WeightFormat
from moesaic.distributed.groups import SINGLE, ProcessGroup
from moesaic.kernels.cpu.arena import Arenas
from moesaic.kernels.cpu.packed import Both, PackedMatrix, Sink, Split
from moesaic.kernels.registry import FAMILIES, FAMILY_OF, kernel

NamedViews = Iterator[tuple[str, Tensor | Sink | Both | Split]]
KIND_OF: dict[torch.dtype, Kind] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
REFERENCE = dict.fromkeys(FAMILIES, "reference")


@dataclass(frozen=True)
class BuildContext:
    """Where and how layers are built.

    Attributes:
        dtype: of weights.
        kv_dtype: of the KV cache; None for the same.
        group: the ranks that share each layer.
        backends: who computes each family of operations.
        formats: how a weight is packed, by its canonical name; None for plain floating-point numbers of `dtype`.
        moe_block_size: the most rows of an expert in one block of work; 0 leaves it to the kernels.
        prefix: canonical name of the layer being built, with a dot at its end; the model's own is empty.
        memory: where packed matrices lie, together, so that huge pages are full.
    """

    device: torch.device
    dtype: torch.dtype
    group: ProcessGroup = SINGLE
    kv_dtype: torch.dtype | None = None
    backends: Mapping[str, str] = field(default_factory=lambda: REFERENCE)
    formats: Callable[[str], WeightFormat] | None = None
    moe_block_size: int = 0
    prefix: str = ""
    memory: Arenas = field(default_factory=Arenas)

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

    def exact(self, *shape: int) -> nn.Parameter:
        """An unfilled vector in fp32, whatever flows between operations, such as rates of decay."""
        return nn.Parameter(torch.empty(*shape, device=self.device), requires_grad=False)

    def matrix(self, name: str, rows: int, cols: int, gated: bool = False) -> Any:
        """An unfilled weight `[rows, cols]` = `[outputs, inputs]`, in the form that the backend multiplies by.

        Args:
            name: canonical, within the layer being built.
            gated: rows are gate's, then up's.
        """
        if self.backends["matrices"] == "cpu":
            return PackedMatrix.empty(rows, cols, self.format_of(name), gated, self.memory.take)
        return nn.Parameter(torch.empty(rows, cols, device=self.device, dtype=self.dtype), requires_grad=False)

    def stacked(self, count: int, rows: int, cols: int) -> nn.Parameter:
        """As many unfilled plain weights `[rows, cols]`, one after the other."""
        return nn.Parameter(torch.empty(count, rows, cols, device=self.device, dtype=self.dtype), requires_grad=False)

    def format_of(self, name: str) -> WeightFormat:
        """How a weight of the layer being built is packed."""
        return self.formats(self.prefix + name) if self.formats is not None else WeightFormat(KIND_OF[self.dtype])

    def kernel(self, op: str) -> Callable[..., Any]:
        """The function that computes `op` here."""
        return kernel(op, self.backends[FAMILY_OF[op]])


class Layer(nn.Module):
    """A module that can say which canonical parameters it holds, as views of its storage.

    Attributes:
        of_experts: the shards of its parameters are experts' (`layers.loading`).
    """

    of_experts = False

    def named_views(self) -> NamedViews:
        """(canonical name, view) of everything that loading must fill; by default, what the sub-layers name."""
        for name, child in self.named_children():
            yield from prefixed(name, child)

    def parameter_parts(self) -> dict[str, dict[str, Any]]:
        """Parameter -> shard -> where it is filled, as a hand-written model's loading names them: `qkv_proj.weight` in
        shards q, k and v. Nothing for a layer that consists of others, which say so themselves."""
        if any(isinstance(child, Layer) for child in self.children()):
            return {}
        parts: dict[str, dict[str, Any]] = {}
        for name, view in self.named_views():
            shard, _, parameter = name.rpartition(".")
            parts.setdefault(parameter, {})[shard] = view
        return parts

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor, *shard: Any, **more: Any) -> None:
        """Fill a parameter of this layer, or one shard of it (once the model is built: `layers.loading.expose`)."""
        param.weight_loader(param, loaded_weight, *shard, **more)  # type: ignore[attr-defined]

    def loaded(self) -> None:
        """Called once, when all that `named_views` named is filled: a layer may bring it into the form it computes
        with."""

    def own_weights(self) -> list[Any]:
        """The parameters, plain or packed, that this layer holds itself; not what only stands for such."""
        plain = [weight for weight in self._parameters.values() if weight is not None and not weight.is_meta]
        return plain + [weight for weight in vars(self).values() if isinstance(weight, PackedMatrix)]

    def weight_bytes(self) -> int:
        """Memory of the weights of this layer and those in it, in the form in which they are kept."""
        layers = [module for module in self.modules() if isinstance(module, Layer)]
        return sum({id(weight): weight.nbytes for layer in layers for weight in layer.own_weights()}.values())


def prefixed(prefix: str, layer: nn.Module) -> NamedViews:
    """The named views of a layer (or of a list of layers), under `prefix`."""
    views = layer.named_views() if isinstance(layer, Layer) else _of_list(layer)
    for name, view in views:
        yield f"{prefix}.{name}", view


def _of_list(layers: nn.Module) -> NamedViews:
    for name, child in layers.named_children():
        yield from prefixed(name, child)


def rows_of(matrix: Any, start: int, stop: int) -> Tensor | Sink:
    """Where loading puts rows [start, stop) of a matrix."""
    if isinstance(matrix, PackedMatrix):
        return matrix.sink(start, stop - start)
    rows: Tensor = matrix.data[start:stop]
    return rows


def gate_and_up(matrix: Any) -> tuple[Tensor | Sink, Tensor | Sink]:
    """Where loading puts the two halves of a gated matrix."""
    if isinstance(matrix, PackedMatrix):
        return matrix.gate_sink(), matrix.up_sink()
    gate, up = matrix.data.chunk(2)
    return gate, up
