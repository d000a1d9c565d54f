"""torch's own files (.bin, .pt, .pth): which tensors are in one, and where. Torch-free but for old and compressed ones.

A file is a zip archive (since torch 1.6) of a pickle (`containers.pickled`) and the storages' plain bytes, which are
read straight from the archive. Of nested dictionaries, the names are the keys on the way, joined by dots; what is no
tensor is a setting, and no weight. Where the model's tensors lie in one entry beside those of training (`WRAPPERS`),
that entry counts.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.core.errors import CheckpointError
from moesaic.core.files import open_regular
from moesaic.weights.containers.pickled import read_pickle
from moesaic.weights.containers.pickled_tensors import PickledTensor, Placeholder
from moesaic.weights.containers.stored import StoredInfo, refuse_pointer
from moesaic.weights.containers.zip_directory import Archive, Entry
from moesaic.weights.tensors import ITEM_BITS, ReadableInfo

SUFFIXES = (".bin", ".pt", ".pth")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
MAX_PICKLE_BYTES = 1 << 28
MAX_DEPTH = 32
MAX_LEAVES = 1_000_000


def read_header(path: str, lenient: bool = False) -> dict[str, ReadableInfo]:
    """Every tensor of a file by name, in the order in which they lie there; one that is all of its file is called "".

    Args:
        lenient: what is no tensor may be of any class, of which nothing is made: for files of training programs.

    Raises:
        CheckpointError: the file is damaged, or holds what is not read, by name.
    """
    try:
        file = open_regular(path)
        try:
            head = os.pread(file, 64, 0)
            refuse_pointer(path, head)
            archive = Archive(file, path) if head.startswith(b"PK") else None
            if archive is not None and any("/code/" in name for name in archive.entries):
                raise CheckpointError(f"cannot read {path}: it is a TorchScript program; save its state_dict() instead")
            if archive is None or any(entry.compressed for entry in archive.entries.values()):
                from moesaic.weights.containers.old_torch_file import read_old_header

                return read_old_header(path, head, archive)
            return _header(archive, path, lenient)
        finally:
            os.close(file)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e


def named_leaves(root: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Everything in nested dictionaries and lists that is neither, by the names on the way to it.

    Raises:
        CheckpointError: it is nested without end, or a name stands for two things.
    """
    seen: set[str] = set()
    count = 0
    stack = [("", _unwrapped(root), 0)]
    while stack:
        name, value, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_LEAVES:
            raise CheckpointError(f"{path} is nested deeper, or holds more, than any checkpoint does")
        if isinstance(value, dict | list) or type(value) is tuple:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack += [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in items]
        elif name in seen:
            raise CheckpointError(f"{path} holds {name} twice")
        else:
            seen.add(name)
            yield name, value


def _unwrapped(root: Any) -> Any:
    """The model's own tensors, where they lie by whole names in one entry of several, none of which is a tensor."""
    if isinstance(root, dict) and not any(_is_tensor(value) for value in root.values()):
        for inner in map(root.get, WRAPPERS):
            if isinstance(inner, dict) and any("." in str(key) and _is_tensor(inner[key]) for key in inner):
                return inner
    return root


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape")


def _header(archive: Archive, path: str, lenient: bool) -> dict[str, ReadableInfo]:
    pickles = [name for name in archive.entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(f"cannot read {path}: it is a zip archive, but none that torch.save writes")
    folder = pickles[0].removesuffix("data.pkl")
    entries = {name.removeprefix(folder): entry for name, entry in archive.entries.items()}
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise CheckpointError(f"cannot read {path}: it was written by a big-endian machine")
    if entries["data.pkl"].size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"cannot read {path}: its pickle has {entries['data.pkl'].size} bytes")
    tensors: dict[str, ReadableInfo] = {}
    for name, leaf in named_leaves(read_pickle(archive.read(entries["data.pkl"]), path, lenient), path):
        if isinstance(leaf, PickledTensor):
            tensors[name] = _info(leaf, archive, entries, path)
        elif isinstance(leaf, Placeholder) and not name.endswith("_extra_state"):
            raise CheckpointError(f"cannot read {path}: {name} is kept as a {leaf.of}, which is no plain tensor")
    if not tensors:
        raise CheckpointError(f"cannot read {path}: it holds no tensors")
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def _info(tensor: PickledTensor, archive: Archive, entries: Mapping[str, Entry], path: str) -> StoredInfo:
    storage = tensor.storage
    entry = entries.get(f"data/{storage.key}")
    if entry is None or entry.size < storage.nbytes:
        raise CheckpointError(f"cannot read {path}: it is damaged, its storage {storage.key} is cut off or not there")
    offset = archive.offset(entry) + tensor.offset * ITEM_BITS[tensor.dtype] // 8
    return StoredInfo(tensor.dtype, tensor.shape, path, offset, strides=tensor.strides)
