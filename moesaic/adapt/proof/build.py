"""Decoders of a spec with an account of its checkpoint: plain fp32 ones, and ones of the first layers alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from moesaic.adapt.proof.scan import Accounts
from moesaic.core.errors import ConfigError
from moesaic.layers.base import BuildContext, Layer
from moesaic.models.backends import choose_backends
from moesaic.models.decoder import Decoder
from moesaic.models.naming import rules_of
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.weights.loader import load_weights
from moesaic.weights.rules import Index
from moesaic.weights.sources import Source
from moesaic.weights.tensors import TensorInfo
from moesaic.worker.memory import device_memory, size_of

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OVERHEAD = 1.1  # of the weights: what is computed with them, and buffers of loading


class PartOf:
    """A source with some of its tensors."""

    def __init__(self, source: Source, names: set[str]) -> None:
        self._source, self.naming = source, source.naming
        self.tensors: Mapping[str, TensorInfo] = {n: info for n, info in source.tensors.items() if n in names}

    def read(self, name: str, index: Index, into: "Tensor") -> None:
        """As any source's."""
        self._source.read(name, index, into)


def decoder(
    path: str,
    architecture: Architecture,
    whole: ModelSpec,
    spec: ModelSpec,
    accounts: Accounts,
    dtype: str,
    backend: str,
) -> Decoder:
    """A loaded decoder.

    Args:
        whole: what the checkpoint holds.
        spec: the same, or its first layers.
        backend: "reference" for plain torch, "auto" for the kernels.
    """
    device, kind = torch.device("cpu"), getattr(torch, dtype)
    backends = choose_backends(spec, device, kind, kind, 16, backend)
    model = Decoder(spec, BuildContext(device, kind, kv_dtype=kind, backends=backends))
    parameters = dict(model.named_views())
    names = {copy.source for copy in accounts.plan.copies if copy.target in parameters}
    rules = rules_of(architecture, whole, accounts.source.naming)
    load_weights(parameters, rules, PartOf(accounts.source, names), path, progress=False)
    for module in model.modules():
        if isinstance(module, Layer):
            module.loaded()
    model.eval()
    return model


def available_memory() -> int:
    """Bytes that this machine can give now."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return device_memory("cpu")
    return min(free, device_memory("cpu"))


def bytes_of(accounts: Accounts, spec: ModelSpec, dtype: str) -> int:
    """Memory of a model of these layers, about."""
    return int(sum(_sizes(accounts, len(spec.layers)).values()) * ITEM_BYTES[dtype] * OVERHEAD)


def fits(accounts: Accounts, spec: ModelSpec, dtype: str) -> bool:
    """Whether there is memory for it."""
    return bytes_of(accounts, spec, dtype) < available_memory()


def require_memory(accounts: Accounts, spec: ModelSpec, dtype: str) -> None:
    """Raise ConfigError with the numbers where the fp32 reference, or after it the engine, does not fit."""
    needed, free = max(bytes_of(accounts, spec, "float32"), bytes_of(accounts, spec, dtype)), available_memory()
    if needed < free:
        return
    beside = sum(_sizes(accounts, 0).values())
    layer = max(1, (sum(_sizes(accounts, len(spec.layers)).values()) - beside) // len(spec.layers))
    few = int((free / 4 / OVERHEAD - beside) / layer * 0.9)
    hint = f"--layers {few} proves the first {few} of {len(spec.layers)}" if few > 0 else "a larger machine is needed"
    raise ConfigError(
        f"the fp32 reference takes about {size_of(needed)} (one model is in memory at a time), and {size_of(free)} are "
        f"free: {hint}; or prove it against a recorded reference in --dtype bfloat16 (--reference FILE)"
    )


def _sizes(accounts: Accounts, layers: int) -> dict[str, int]:
    """Numbers in each parameter of the first layers, and of what stands around them."""
    return {n: torch.Size(shape).numel() for n, shape in accounts.shapes.items() if in_layers(n, layers)}


def in_layers(name: str, layers: int) -> bool:
    """Whether a parameter is of one of the first layers, or of none."""
    first, _, rest = name.partition(".")
    return first != "layers" or int(rest.partition(".")[0]) < layers
