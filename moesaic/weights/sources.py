"""Where a checkpoint's tensors come from, whatever it is kept as, behind one small interface. Torch-free until read."""

import glob
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from moesaic.core.config import LoadFormat
from moesaic.core.errors import CheckpointError
from moesaic.core.log import get_logger
from moesaic.weights.containers.safetensors import SafetensorsFile
from moesaic.weights.rules import Index
from moesaic.weights.tensors import TensorInfo, merge_shards

if TYPE_CHECKING:
    import torch

log = get_logger(__name__)

NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # .bin files beside the weights


class Source(Protocol):
    """The tensors of a checkpoint; `tensors` is in the order in which reading is fastest.

    Attributes:
        naming: whose names the tensors have: "hf" for those of the architecture's own rules (`models.naming`).
    """

    naming: str

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        """Copy part `index` of a tensor into `into`, which has that part's shape and any dtype and device. Threads may
        call it at the same time."""


class SafetensorsSource:
    """Tensors of one or more safetensors files."""

    naming = "hf"

    def __init__(self, shards: list[str]) -> None:
        self._files = {path: SafetensorsFile(path) for path in shards}
        self.tensors = merge_shards(file.tensors for file in self._files.values())

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        info = self.tensors[name]
        self._files[info.file].read(info, index, into)


def find_shards(folder: str, single: str, pattern: str) -> list[str]:
    """The files that hold the weights: those that the index names, else the single file, else all of their kind.

    Raises:
        CheckpointError: naming every shard of the index that is not there.
    """
    index = os.path.join(folder, f"{single}.index.json")
    if os.path.exists(index):
        names = sorted(set(_weight_map(index).values()))
        absent = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
        if absent:
            raise CheckpointError(
                f"{index} names {len(names)} shards, {len(absent)} of them missing: {', '.join(absent)}"
            )
        return [os.path.join(folder, name) for name in names]
    if os.path.isfile(os.path.join(folder, single)):
        return [os.path.join(folder, single)]
    found = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
    return [file for file in found if not os.path.basename(file).startswith(NOT_WEIGHTS)]


def open_source(folder: str, load_format: LoadFormat = "auto") -> Source:
    """The tensors of the checkpoint in `folder`; "auto" takes the first format of which there are files.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """
    for name, opener in OPENERS.items():
        if load_format in ("auto", name):
            source = opener(folder)
            if source is not None:
                return source
    formats = OPENERS if load_format == "auto" else [load_format]
    raise CheckpointError(f"{folder} holds no weights as {' or '.join(formats)} (it holds: {_listing(folder)})")


def _open_safetensors(folder: str) -> Source | None:
    shards = find_shards(folder, "model.safetensors", "*.safetensors")
    return SafetensorsSource(shards) if shards else None


def _open_torch_files(folder: str) -> Source | None:
    from moesaic.weights.containers.torch_file import BinSource

    shards = find_shards(folder, "pytorch_model.bin", "*.bin")
    return BinSource(shards) if shards else None


# What a checkpoint may be kept as, best first: what opens it, or says None where a folder holds none such.
OPENERS: dict[str, Callable[[str], Source | None]] = {
    "safetensors": _open_safetensors,
    "bin": _open_torch_files,
}


def _weight_map(index: str) -> dict[str, str]:
    try:
        with open(index, encoding="utf-8") as f:
            weight_map = json.load(f)["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged ({e!r})") from e
    raise CheckpointError(f"{index} names no shards")


def _listing(folder: str) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
