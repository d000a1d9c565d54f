"""torch's files that are no archive of plain bytes: those of torch before 1.6, and compressed archives. They are loaded
whole, as plain data (`weights_only`), one at a time."""

import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.zip_directory import Archive
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ReadableInfo

if TYPE_CHECKING:
    import torch

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # a pickle of the number that torch's files began with
MAX_UNPACKED = 1 << 26  # bytes that an archive may always unpack to
MAX_RATIO = 64  # beyond that: weights do not compress so well


class OldTorchFile:
    """A file that is loaded when something of it is read, until something of another is."""

    _lock: ClassVar = threading.Lock()
    _loaded: ClassVar["weakref.ref[OldTorchFile] | None"] = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str) -> "torch.Tensor":
        """One of its tensors."""
        with self._lock:
            loaded = None if OldTorchFile._loaded is None else OldTorchFile._loaded()
            if loaded is not self:
                if loaded is not None:
                    loaded._tensors = {}
                self._tensors = load(self.path)
                OldTorchFile._loaded = weakref.ref(self)
            return self._tensors[name]


@dataclass(frozen=True)
class LoadedInfo(ReadableInfo):
    """A tensor that is to be had only by loading its file.

    Attributes:
        name: in that file.
    """

    name: str = field(kw_only=True)
    owner: OldTorchFile = field(kw_only=True, compare=False, repr=False)

    def read(self, index: Index, into: "torch.Tensor") -> None:
        into.copy_(self.owner.tensor(self.name)[index])


def read_old_header(path: str, head: bytes, archive: Archive | None) -> dict[str, ReadableInfo]:
    """Every tensor of a file by name. Raises CheckpointError.

    Args:
        head: the file's first bytes.
        archive: None where the file is no archive.
    """
    if archive is None and not head.startswith(MAGIC):
        raise CheckpointError(f"cannot read {path}: it is no file of torch's, or truncated (it begins {head[:8]!r})")
    if archive is not None:
        unpacked = sum(entry.size for entry in archive.entries.values())
        if unpacked > max(MAX_UNPACKED, MAX_RATIO * archive.size):
            raise CheckpointError(f"cannot read {path}: {archive.size} bytes that unpack to {unpacked} hold no weights")
    from moesaic.weights.dtypes import NAMES

    owner = OldTorchFile(path)
    return {
        name: LoadedInfo(
            NAMES.get(t.dtype, str(t.dtype).removeprefix("torch.")), tuple(t.shape), path, name=name, owner=owner
        )
        for name, t in load(path).items()
    }


def load(path: str) -> "dict[str, torch.Tensor]":
    """All tensors of a file by name, never running code that a file may carry. Raises CheckpointError."""
    import torch

    from moesaic.weights.containers.torch_file import named_leaves

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle raises whatever its bytes happen to mean
        first = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise CheckpointError(f"cannot read {path}: truncated, damaged or not weights alone ({first})") from e
    return {name: leaf for name, leaf in named_leaves(state, path) if isinstance(leaf, torch.Tensor)}
