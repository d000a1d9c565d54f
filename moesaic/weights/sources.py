"""Where a checkpoint's tensors come from: sharded safetensors or torch's .bin files, behind one small interface."""

import glob
import json
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from moesaic.core.config import LoadFormat
from moesaic.core.errors import CheckpointError
from moesaic.core.log import get_logger
from moesaic.weights.rules import Index
from moesaic.weights.safetensors_file import LFS_MAGIC, SafetensorsFile, TensorInfo

log = get_logger(__name__)

NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # .bin files beside the weights


class Source(Protocol):
    """The tensors of a checkpoint; `tensors` is in the order in which reading is fastest."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    def read(self, name: str, index: Index, into: torch.Tensor) -> None:
        """Copy part `index` of a tensor into `into`, which has that part's shape and any dtype and device. Threads may
        call it at the same time."""


def open_source(folder: str, load_format: LoadFormat) -> Source:
    """The tensors of the checkpoint in `folder`; "auto" prefers safetensors. Raises CheckpointError."""
    if load_format in ("auto", "safetensors"):
        shards = find_shards(folder, "model.safetensors", "*.safetensors")
        if shards:
            return SafetensorsSource(shards)
    if load_format in ("auto", "bin"):
        shards = find_shards(folder, "pytorch_model.bin", "*.bin")
        if shards:
            return BinSource(shards)
    wanted = {"safetensors": "no .safetensors", "bin": "no .bin"}.get(load_format, "neither .safetensors nor .bin")
    raise CheckpointError(f"{folder} holds {wanted} files with weights (it holds: {_listing(folder)})")


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


class SafetensorsSource:
    """Tensors of one or more safetensors files."""

    def __init__(self, shards: list[str]) -> None:
        self._files = {path: SafetensorsFile(path) for path in shards}
        self.tensors = merge_shards(file.tensors for file in self._files.values())

    def read(self, name: str, index: Index, into: torch.Tensor) -> None:
        info = self.tensors[name]
        self._files[info.file].read(info, index, into)


class BinSource:
    """Tensors of torch's own files, which are loaded as plain data (`weights_only`) and mapped where they can be.

    One shard is held at a time: `tensors` goes shard by shard, and so should `read`.
    """

    def __init__(self, shards: list[str]) -> None:
        self._open: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self._lock = threading.Lock()
        self.tensors = merge_shards(self._infos(path) for path in shards)

    def read(self, name: str, index: Index, into: torch.Tensor) -> None:
        with self._lock:
            tensor = self._shard(self.tensors[name].file)[name]
        into.copy_(tensor[index])

    def _infos(self, path: str) -> dict[str, TensorInfo]:
        return {n: TensorInfo(_dtype_name(t.dtype), tuple(t.shape), path) for n, t in self._shard(path).items()}

    def _shard(self, path: str) -> dict[str, torch.Tensor]:
        if self._open[0] != path:
            self._open = ("", {})  # let go of the last shard before the next one is loaded
            self._open = (path, load_bin(path))
        return self._open[1]


def load_bin(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a torch file, never running code that a file may carry. Raises CheckpointError."""
    with open(path, "rb") as f:
        head = f.read(len(LFS_MAGIC))
    if head == LFS_MAGIC:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    mapped = head.startswith(b"PK")  # a zip archive; torch before 1.6 wrote plain pickles, which cannot be mapped
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as e:  # a damaged pickle raises whatever its bytes happen to mean
        raise CheckpointError(f"cannot read {path}: truncated, damaged or not weights alone ({_first(e)})") from e
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{path} must hold a flat dictionary of tensors")
    return state


def merge_shards(shards: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """All tensors of all shards. Raises CheckpointError when two shards hold the same one."""
    merged: dict[str, TensorInfo] = {}
    for shard in shards:
        for name in merged.keys() & shard.keys():
            raise CheckpointError(f"tensor {name} is in {merged[name].file} and again in {shard[name].file}")
        merged.update(shard)
    return merged


def _weight_map(index: str) -> dict[str, str]:
    try:
        with open(index, encoding="utf-8") as f:
            weight_map = json.load(f)["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged ({e!r})") from e
    raise CheckpointError(f"{index} names no shards")


def _dtype_name(dtype: torch.dtype) -> str:
    short = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return short.get(dtype, str(dtype).removeprefix("torch."))


def _listing(folder: str) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
