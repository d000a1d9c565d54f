"""Which tensors make a checkpoint anew under the names of Hugging Face, and what gives each of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.core.config import DType
from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.models.load import read_config, read_spec
from moesaic.models.naming import rules_of
from moesaic.models.parameters import parameter_shapes
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.models.spellings import saved_names
from moesaic.weights.codecs import decoded
from moesaic.weights.dtypes import FLOAT_DTYPES, NAMES
from moesaic.weights.export import Assembly, assemble, assemblies
from moesaic.weights.loader import refuse_dtypes
from moesaic.weights.plan import Copy, LoadPlan, plan_load
from moesaic.weights.report import DAMAGED, not_finite
from moesaic.weights.rules import Shape
from moesaic.weights.scan import scan_numbers
from moesaic.weights.sources import Source, open_source
from moesaic.weights.tensors import FLOATS


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is to be converted.

    Attributes:
        source: its tensors as floats; `stored` as they are stored.
        plan: which of them fills which parameter.
        parameters: canonical name -> shape.
    """

    path: str
    config: Mapping[str, Any]
    architecture: Architecture
    spec: ModelSpec
    stored: Source
    source: Source
    plan: LoadPlan
    parameters: Mapping[str, Shape]

    @classmethod
    def open(cls, path: str, arch: str | None = None) -> "Checkpoint":
        """The checkpoint in a folder. Raises CheckpointError for what does not fill its model exactly."""
        architecture, spec = read_spec(path, arch)
        if not isinstance(spec, ModelSpec):
            raise UnsupportedError(f"{architecture.name} is a hand-written model: only its class knows its weights")
        config = read_config(path)
        stored = open_source(path)
        source = decoded(stored, config)
        parameters = parameter_shapes(spec)
        shapes = {name: info.shape for name, info in source.tensors.items()}
        plan = plan_load(parameters, rules_of(architecture, spec, source.naming), shapes, path)
        refuse_dtypes(source, plan.copies, path)
        return cls(path, config, architecture, spec, stored, source, plan, parameters)

    @property
    def named_well(self) -> bool:
        """The names are Hugging Face's, and none stands for codes."""
        own = (self.stored.tensors.get(name) for name in self.source.tensors)
        return self.source.naming == "hf" and all(info is None or info.dtype in FLOATS for info in own)

    def parameter(self, copy: Copy, shape: Shape) -> Tensor:
        """A parameter, in the dtype in which it is stored."""
        dtype = FLOAT_DTYPES[self.source.tensors[copy.source].dtype]
        part = torch.empty(shape if copy.view is None else copy.view.shape, dtype=dtype)
        self.source.read(copy.source, copy.index, part)
        return part if copy.view is None else copy.view.take(part)


@dataclass(frozen=True)
class Output:
    """The tensors to write: name -> dtype (as safetensors spells it) and shape, and what gives each of them."""

    tensors: Mapping[str, tuple[str, Shape]]
    values: Callable[[str], Tensor]

    def nbytes(self, name: str) -> int:
        """Of one tensor."""
        dtype, shape = self.tensors[name]
        return FLOAT_DTYPES[dtype].itemsize * torch.Size(shape).numel()


def output_of(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """The tensors that make the checkpoint anew, by the names of Hugging Face."""
    if checkpoint.named_well:
        return _renamed(checkpoint, dtype)
    return _assembled(checkpoint, dtype)


def _renamed(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """All tensors under the names that they have, those that the model does not need among them."""
    infos = {name: info for name, info in checkpoint.source.tensors.items() if info.dtype in FLOATS}

    def values(name: str) -> Tensor:
        whole = torch.empty(infos[name].shape, dtype=FLOAT_DTYPES[infos[name].dtype])
        checkpoint.source.read(name, (), whole)
        return whole.to(FLOAT_DTYPES[tensors[name][0]])

    tensors = {name: (_dtype(info.dtype, info.shape, dtype), info.shape) for name, info in infos.items()}
    return Output(tensors, values)


def _assembled(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """The model's parameters, put together as the architecture's own rules name them."""
    found = assemblies(
        checkpoint.parameters,
        checkpoint.architecture.rules(checkpoint.spec),
        saved_names(checkpoint.architecture.name),
    )
    copies = {copy.target: copy for copy in checkpoint.plan.copies}
    infos = checkpoint.source.tensors

    def stored_as(assembly: Assembly) -> str:
        kinds = [infos[copies[name].source].dtype for name, _ in assembly.parts if name in copies]
        return max(kinds, key=FLOATS[::-1].index) if kinds else "F32"

    def parameter(name: str) -> Tensor:
        shape = checkpoint.parameters[name]
        return checkpoint.parameter(copies[name], shape) if name in copies else torch.zeros(shape)

    def values(name: str) -> Tensor:
        return assemble(found[name], FLOAT_DTYPES[tensors[name][0]], parameter)

    tensors = {name: (_dtype(stored_as(a), a.shape, dtype), a.shape) for name, a in found.items()}
    return Output(tensors, values)


def finite(checkpoint: Checkpoint, output: Output, where: str) -> Callable[[str], Tensor]:
    """What gives each tensor, and raises CheckpointError for one that the model computes with and that holds NaN or
    infinity. (What it does not compute with may well: a mask does.)"""
    used = {copy.source for copy in checkpoint.plan.copies} if checkpoint.named_well else output.tensors.keys()

    def values(name: str) -> Tensor:
        tensor = output.values(name)
        scan = scan_numbers(tensor) if name in used else None
        if scan is not None and scan.nonfinite:
            found = not_finite(name, name, scan, tuple(tensor.shape))
            raise CheckpointError(
                f"{where}: a weight holds NaN or infinity, so {DAMAGED} (--allow-nonfinite converts it all the same):\n"
                f"  {found}"
            )
        return tensor

    return values


def _dtype(stored: str, shape: Shape, wanted: DType | None) -> str:
    """What a tensor is written in: as it is stored, unless another dtype is wanted, of which vectors have 32 bits."""
    if wanted is None:
        return stored
    return "F32" if len(shape) < 2 and stored in ("F64", "F32") else NAMES[getattr(torch, str(wanted))]


def config_of(config: Mapping[str, Any], dtype: DType | None) -> dict[str, Any]:
    """The config of floats: nothing of quantisation, and the dtype that was asked for."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if dtype is None:
        return kept
    text = kept.get("text_config")
    for part in (kept, text if isinstance(text, dict) else {}):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    return kept if "torch_dtype" in kept else {**kept, "dtype": dtype}
