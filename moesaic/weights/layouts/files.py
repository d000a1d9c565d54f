"""Which of a folder's files hold weights, and reading one whatever it is."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from moesaic.core.errors import CheckpointError
from moesaic.core.files import parse_json, read_file
from moesaic.weights.containers import safetensors, torch_file
from moesaic.weights.tensors import ReadableInfo

# How names of files begin, and end, that lie beside the weights.
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", ".")
OF_TRAINING = ("_model_states.pt", "_optim_states.pt", "optim_rng.pt")  # layouts of their own
SUFFIXES = (".safetensors", *torch_file.SUFFIXES)
MAX_DEPTH = 12


def find_shards(folder: str, single: str, *patterns: str) -> list[str]:
    """The files that hold the weights: those that the index names, else the single file, else all of their kind.

    Args:
        patterns: of kinds, of which the first that there is counts.

    Raises:
        CheckpointError: naming every shard of the index that is not there.
    """
    index = os.path.join(folder, f"{single}.index.json")
    if os.path.exists(index):
        names = sorted(set(_weight_map(index).values()))
        outside = [name for name in names if os.path.isabs(name) or ".." in name.split("/")]
        if outside:
            raise CheckpointError(f"{index} names files that are not in its folder: {_few(outside)}")
        absent = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
        if absent:
            raise CheckpointError(f"{index} names {len(names)} shards, {len(absent)} of them missing: {_few(absent)}")
        return [os.path.join(folder, name) for name in names]
    if os.path.isfile(os.path.join(folder, single)):
        return [os.path.join(folder, single)]
    for pattern in patterns:
        found = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
        kept = [file for file in found if holds_weights(os.path.basename(file))]
        if kept:
            return kept
    return []


def holds_weights(name: str) -> bool:
    """Whether a file of this name is one of the weights."""
    return name.endswith(SUFFIXES) and not name.startswith(NOT_WEIGHTS) and not name.endswith(OF_TRAINING)


def files_below(folder: str, most: int) -> Iterator[str]:
    """The paths of all files of weights in folders of `folder`, relative to it; hidden folders are left alone.

    Args:
        most: files and folders that are looked at.
    """
    entries = 0
    stack = [("", 0)]
    while stack:
        where, depth = stack.pop()
        with os.scandir(os.path.join(folder, where)) as found:
            for entry in found:
                entries += 1
                if entries > most:
                    return
                path = f"{where}/{entry.name}" if where else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_DEPTH and not entry.name.startswith("."):
                        stack.append((path, depth + 1))
                elif where and holds_weights(entry.name):
                    yield path


def folder_of_step(folder: str, latest: str, name_of: Callable[[str], str] = str) -> str:
    """The folder of the step that the file `latest` states, or `folder` where there is no such file.

    Args:
        name_of: what the folder of a stated step is called.

    Raises:
        CheckpointError: there is no such folder.
    """
    file = os.path.join(folder, latest)
    if not os.path.isfile(file):
        return folder
    with open(file, encoding="utf-8", errors="replace") as f:
        stated = f.read(256).strip()
    name = name_of(stated)
    where = os.path.join(folder, os.path.basename(name))
    if not name or not os.path.isdir(where):
        raise CheckpointError(f"{file} names the step {stated!r}, but there is no folder {name}")
    return where


def read_header(path: str) -> Mapping[str, ReadableInfo]:
    """Every tensor of a file by name; one that is all of its file is called "". Raises CheckpointError."""
    if path.endswith(".safetensors"):
        return safetensors.read_header(path)
    return torch_file.read_header(path)


def natural(names: Iterable[str]) -> list[str]:
    """Sorted, with numbers in the order of their values."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def _few(names: list[str]) -> str:
    shown = [name if len(name) <= 200 else f"{name[:200]}..." for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _weight_map(index: str) -> dict[str, str]:
    try:
        weight_map = parse_json(read_file(index))["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged ({e!r})") from e
    raise CheckpointError(f"{index} names no shards")
