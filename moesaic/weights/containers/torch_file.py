"""torch's own files (.bin, .pt, .pth), loaded as plain data."""

import threading

import torch

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.safetensors import LFS_MAGIC
from moesaic.weights.dtypes import NAMES
from moesaic.weights.rules import Index
from moesaic.weights.tensors import TensorInfo, merge_shards


class BinSource:
    """Tensors of torch's own files, which are loaded as plain data (`weights_only`) and mapped where they can be.

    One shard is held at a time: `tensors` goes shard by shard, and so should `read`.
    """

    naming = "hf"

    def __init__(self, shards: list[str]) -> None:
        self._open: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self._lock = threading.Lock()
        self.tensors = merge_shards(self._infos(path) for path in shards)

    def read(self, name: str, index: Index, into: torch.Tensor) -> None:
        with self._lock:
            tensor = self._shard(self.tensors[name].file)[name]
        into.copy_(tensor[index])

    def _infos(self, path: str) -> dict[str, TensorInfo]:
        return {
            n: TensorInfo(NAMES.get(t.dtype, str(t.dtype).removeprefix("torch.")), tuple(t.shape), path)
            for n, t in self._shard(path).items()
        }

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


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
