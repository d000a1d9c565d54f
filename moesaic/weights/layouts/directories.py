"""Experts or layers in folders of their own: `expert_0/q_proj.bin`, `layers/0/experts/7/w1.pt`, one tensor or a small
state dict a file, and the rest beside them, as shards or as loose files.

A tensor's name is its file's path without the suffix and its key in the file, all joined by dots:

- a file that is one tensor: `layer_0/expert_3/up_proj.bin` is `layer_0.expert_3.up_proj.weight` (`.weight` is added
  unless the path ends with weight or bias);
- a state dict: `layer_0/expert_3.pt` with `up_proj.weight` is `layer_0.expert_3.up_proj.weight`; a file's name that
  says no more than that weights are in it (`model`, `weights`, `pytorch_model`, ...) is left out;
- a key that names its layer is a whole name, wherever its file lies, and so is one with a dot in it of a file that lies
  in no folder: a shard.
"""

import os
import re

from moesaic.core.errors import CheckpointError
from moesaic.weights.layouts.files import SUFFIXES, files_below, find_shards, holds_weights, natural, read_header
from moesaic.weights.tensors import ReadableInfo

TREE = re.compile(r"(^|/)(experts?|layers?|blocks?|h)([_.-]?\d+|/\d+)(/|$)", re.IGNORECASE)
SAYS_NOTHING = re.compile(
    r"(pytorch_|adapter_|diffusion_)?(model|weights|state_dict|params|parameters|tensors|checkpoint|consolidated)"
    r"([-_.]?\d[-_.\w]*)?"
)
WHOLE = re.compile(r"(^|\.)(layers?|blocks?|h)[._]\d+[._]")

LOOKED_AT = 100_000  # files of a folder that may be anything
MAX_FILES = 5_000_000  # of a checkpoint


def open_tree(folder: str) -> dict[str, ReadableInfo] | None:
    """The tensors of a checkpoint that keeps experts or layers in folders of their own; None for another.

    Raises:
        CheckpointError: a file is damaged, or two tensors have one name.
    """
    if not any(TREE.search(os.path.dirname(path)) for path in files_below(folder, LOOKED_AT)):
        return None
    below = natural(files_below(folder, MAX_FILES))
    shards = find_shards(folder, "model.safetensors", "*.safetensors")
    shards = shards or find_shards(folder, "pytorch_model.bin", "pytorch_model*.bin")
    first = [os.path.relpath(path, folder) for path in shards]
    loose = [path for path in sorted(os.listdir(folder)) if holds_weights(path) and path not in first]
    if shards:  # the same weights in another kind of shards are left alone
        loose = [path for path in loose if not SAYS_NOTHING.fullmatch(_stem(path))]
    return named_tensors(folder, [*first, *loose, *below])


def named_tensors(folder: str, paths: list[str]) -> dict[str, ReadableInfo]:
    """The tensors of files at these relative paths, by the names that path and key give. Raises CheckpointError."""
    tensors: dict[str, ReadableInfo] = {}
    for path in paths:
        for key, info in read_header(os.path.join(folder, path)).items():
            name = tensor_name(path, key)
            if name in tensors:
                raise CheckpointError(f"tensor {name} is in {tensors[name].file} and again in {info.file}")
            tensors[name] = info
    return tensors


def tensor_name(path: str, key: str) -> str:
    """What a tensor is called that a file at a relative path keeps as `key`; "" where it is all of the file."""
    parts, stem = path.split("/")[:-1], _stem(os.path.basename(path))
    if not key:
        name = ".".join([*parts, stem])
        return name if name.endswith(("weight", "bias")) else f"{name}.weight"
    if WHOLE.search(key) or (not parts and "." in key):
        return key
    if not SAYS_NOTHING.fullmatch(stem) and not key.startswith(f"{stem}."):
        parts.append(stem)
    return ".".join([*parts, key])


def _stem(name: str) -> str:
    return name.removesuffix(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ""))
