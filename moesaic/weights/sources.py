"""Where a checkpoint's tensors come from, whatever it is kept as, behind one small interface. Torch-free until read."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from moesaic.core.config import LoadFormat
from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.core.log import get_logger
from moesaic.weights.containers import safetensors, torch_file
from moesaic.weights.containers.gguf import gguf_shards, open_gguf
from moesaic.weights.layouts.deepspeed import open_deepspeed
from moesaic.weights.layouts.directories import named_tensors, open_tree
from moesaic.weights.layouts.files import find_shards
from moesaic.weights.layouts.megatron import open_megatron
from moesaic.weights.layouts.packed import open_packed
from moesaic.weights.rules import Index
from moesaic.weights.tensors import ReadableInfo, TensorInfo, merge_shards

if TYPE_CHECKING:
    import torch

log = get_logger(__name__)


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


class FilesSource:
    """Tensors of any number of files, each of which knows where it lies."""

    def __init__(self, tensors: Mapping[str, ReadableInfo], naming: str = "hf") -> None:
        self.tensors, self.naming = tensors, naming

    def read(self, name: str, index: Index, into: "torch.Tensor") -> None:
        self.tensors[name].read(index, into)


def open_source(folder: str, load_format: LoadFormat = "auto") -> Source:
    """The tensors of the checkpoint in `folder`, or in the GGUF file of that name; "auto" takes the first format of
    OPENERS of which there are files, and logs which files of other formats it leaves alone.

    Raises:
        CheckpointError: there are none, or a file is damaged.
        UnsupportedError: they are in a format that is not read, by name.
    """
    for name, opener in openers_of(folder).items():
        if load_format in ("auto", name):
            source = opener(folder)
            if source is not None:
                _log_choice(folder, name, source)
                return source
    if not os.path.isdir(folder):
        raise CheckpointError(f"{folder} is one file, and none that is a whole checkpoint")
    _refuse_distributed(folder)
    formats = OPENERS if load_format == "auto" else [load_format]
    raise CheckpointError(f"{folder} holds no weights as {' or '.join(formats)} (it holds: {_listing(folder)})")


def _open_tree(folder: str) -> Source | None:
    tensors = open_tree(folder)
    return None if tensors is None else FilesSource(tensors)


def _open_safetensors(folder: str) -> Source | None:
    shards = find_shards(folder, "model.safetensors", "*.safetensors")
    return FilesSource(merge_shards(map(safetensors.read_header, shards))) if shards else None


def _open_torch_files(folder: str) -> Source | None:
    shards = find_shards(folder, "pytorch_model.bin", "*.bin", "*.pt", "*.pth")
    if len(shards) > 1:
        return FilesSource(named_tensors(folder, [os.path.basename(path) for path in shards]))
    return FilesSource(torch_file.read_header(shards[0])) if shards else None


def _open_deepspeed(folder: str) -> Source | None:
    tensors = open_deepspeed(folder)
    return None if tensors is None else FilesSource(tensors)


def _open_megatron(folder: str) -> Source | None:
    tensors = open_megatron(folder)
    return None if tensors is None else FilesSource(tensors, "megatron")


def _open_hdf5(folder: str) -> Source | None:
    from moesaic.weights.containers import hdf5

    files = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(hdf5.SUFFIXES)]
    return FilesSource(merge_shards(map(hdf5.read_header, files))) if files else None


def _open_gguf(folder: str) -> Source | None:
    shards = gguf_shards(folder)
    return open_gguf(shards) if shards else None


# What a checkpoint may be kept as, best first: what opens it, or says None where a folder holds none such.
OPENERS: dict[str, Callable[[str], Source | None]] = {
    "packed": open_packed,
    "directories": _open_tree,
    "safetensors": _open_safetensors,
    "bin": _open_torch_files,
    "deepspeed": _open_deepspeed,
    "megatron": _open_megatron,
    "hdf5": _open_hdf5,
    "gguf": _open_gguf,
}


def openers_of(path: str) -> dict[str, Callable[[str], Source | None]]:
    """What may open the checkpoint at `path`: of one file only what is a whole checkpoint in one."""
    return OPENERS if os.path.isdir(path) else {"gguf": _open_gguf}


WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".hdf5",
    ".gguf",
    ".moepack",
)  # what names of files of weights end with


def _log_choice(folder: str, name: str, source: Source) -> None:
    if not os.path.isdir(folder):
        return
    taken = {file for info in source.tensors.values() for file in info.files}
    left = [f for f in sorted(os.listdir(folder)) if f.endswith(WEIGHTS) and os.path.join(folder, f) not in taken]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        log.info("%s: weights are read as %s; left alone: %s%s", folder, name, ", ".join(left[:5]), more)


def _refuse_distributed(folder: str) -> None:
    """Raise UnsupportedError for what torch's distributed checkpoints, and zarr, look like."""
    folders = [folder, *(entry.path for entry in os.scandir(folder) if entry.is_dir())]
    names = [name for where in folders for name in os.listdir(where)]
    zarr = any(name.endswith((".zarray", ".zarr")) for name in names)
    if zarr or any(name.endswith(".distcp") for name in names):
        kind = "zarr" if zarr else "torch_dist, .distcp files"
        raise UnsupportedError(
            f"{folder} is a distributed checkpoint ({kind}), which is not read: save it with --ckpt-format torch, or "
            "convert it to Hugging Face's layout with the tools of the program that wrote it"
        )


def _listing(folder: str) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
