"""Recorded routes as a file: what the server's recorder and `moesaic profile` write, and what placement, residency,
pruning, mixed precision and simulated routing read.

It is a safetensors file. Its metadata have `format` ("moesaic-routes"), `version` (1), and `about`: a JSON object of
the fields of `RouteProfile` that are no arrays. Its tensors are the arrays: `counts`, `weights`, `pairs` and, where
choices were kept one by one, `stream`. Nothing in it is code. Torch-free to read.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.core.errors import CheckpointError
from moesaic.core.files import parse_json
from moesaic.weights.containers.safetensors import read_header

FORMAT, VERSION = "moesaic-routes", 1
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 1 << 30
MAX_EXPERTS = 1 << 15  # ids are 16 bits
DTYPES: dict[str, tuple[str, type]] = {
    "counts": ("I64", np.int64),
    "weights": ("F64", np.float64),
    "pairs": ("I32", np.int32),
    "stream": ("I16", np.int16),
}


@dataclass(frozen=True, eq=False)
class RouteProfile:
    """Where recorded tokens went in a model of L MoE layers, of at most E experts and at most k choices a token.

    Attributes:
        model: its name.
        layers: `[L]`, index of each router's decoder layer; one whose attention has experts too is there twice, and
            attention's stand first.
        num_experts: `[L]`, of each layer.
        top_k: `[L]`, the model's own choices a token (a request may have asked for more or fewer).
        tags: of which counts were kept apart.
        tokens: recorded, of all requests.
        tokens_of_tags: recorded, of each tag; a token counts for each tag of its request.
        tags_left_out: whether more tags than are kept apart were seen.
        counts: `[1 + tags, L, E]` int64, tokens that chose each expert: of all requests, then of each tag.
        weights: `[1 + tags, L, E]` float64, the sum of the weights that they gave it.
        pairs: `[L, E (E - 1) / 2]` int32, tokens that chose both experts of a pair: (0, 1), (0, 2), ... (E - 2, E - 1).
        stream: `[N, L, k]` int16, the choices of the first N tokens, best first, -1 for none; None where not kept.
    """

    model: str
    layers: list[int]
    num_experts: list[int]
    top_k: list[int]
    tags: list[str]
    tokens: int
    tokens_of_tags: list[int]
    tags_left_out: bool
    counts: NDArray[np.int64]
    weights: NDArray[np.float64]
    pairs: NDArray[np.int32]
    stream: NDArray[np.int16] | None = None

    def of(self, tag: str | None = None) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]:
        """Counts and weights of each layer, `[E of the layer]` each, of a tag or of all requests.

        Raises:
            KeyError: the tag was not recorded.
        """
        if tag is not None and tag not in self.tags:
            raise KeyError(tag)
        row = 0 if tag is None else 1 + self.tags.index(tag)
        sizes = list(enumerate(self.num_experts))
        return [self.counts[row, i, :e] for i, e in sizes], [self.weights[row, i, :e] for i, e in sizes]

    @property
    def feed_forwards(self) -> dict[int, int]:
        """Decoder layer -> the row of its feed-forward's experts, whether or not its attention has experts too."""
        return {layer: row for row, layer in enumerate(self.layers)}  # of two with one layer, attention's stands first

    def together(self, row: int) -> NDArray[np.int64]:
        """`[E, E]`, symmetric: tokens that chose both of two experts in layer `layers[row]`; on the diagonal, one."""
        experts = self.counts.shape[2]
        full = np.zeros((experts, experts), dtype=np.int64)
        full[self._upper] = self.pairs[row]
        full += full.T
        np.fill_diagonal(full, self.counts[0, row])
        size = self.num_experts[row]
        return full[:size, :size]

    @cached_property
    def _upper(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.triu_indices(self.counts.shape[2], 1)
        return rows, columns


def hottest(profile: RouteProfile, share: float) -> dict[int, list[int]]:
    """Decoder layer -> the experts that carry most routing weight, most first: a share of each layer's, at least one.

    Attention's experts are left out.
    """
    found = {}
    for layer, row in profile.feed_forwards.items():
        weights = profile.of()[1][row]
        count = max(1, round(share * len(weights)))
        found[layer] = np.argsort(-weights, kind="stable")[:count].tolist()
    return found


ARRAYS = ("counts", "weights", "pairs", "stream")
ABOUT = tuple(field.name for field in fields(RouteProfile) if field.name not in ARRAYS)


def write_routes(profile: RouteProfile, path: str) -> int:
    """Write a file, under a temporary name until it is whole; its size in bytes."""
    import torch

    from moesaic.weights.writing import write_file

    arrays = {name: value for name in ARRAYS if (value := getattr(profile, name)) is not None}
    about = json.dumps({name: getattr(profile, name) for name in ABOUT})
    write_file(
        path,
        {name: (DTYPES[name][0], array.shape) for name, array in arrays.items()},
        lambda name: torch.from_numpy(np.ascontiguousarray(arrays[name])),
        {"format": FORMAT, "version": str(VERSION), "about": about},
    )
    return os.path.getsize(path)


def read_routes(path: str) -> RouteProfile:
    """The recorded routes in a file.

    Raises:
        CheckpointError: it cannot be read, is damaged, is of a later version, or is something else.
    """
    header = read_header(path)  # that the file is as long as it says
    size = sum(info.nbytes for info in header.values())
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, and files of routes of {MAX_FILE_BYTES} at the most are read")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = _about(path, file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in header if name in ARRAYS}
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path} is damaged: {e}") from e
    wrong = _fault(about, arrays)
    if wrong:
        raise CheckpointError(f"{path} is damaged: {wrong}")
    return RouteProfile(**about, **arrays)


def _about(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata say of the arrays; its names and types are right, not yet its numbers."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} holds no recorded routes: such files are written by `moesaic profile` and /v1/moe/profile"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} holds routes of version {metadata.get('version', '?')[:20]}, and this one reads version {VERSION}"
        )
    try:
        about = parse_json(metadata["about"].encode())
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged: its metadata have no legible `about` ({e})") from e
    if not isinstance(about, dict) or sorted(about) != sorted(ABOUT):
        raise CheckpointError(f"{path} is damaged: `about` must be an object of {', '.join(ABOUT)}")
    return about


def _fault(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """What is wrong with the contents of a file; "" where nothing is."""
    for name in ("layers", "num_experts", "top_k", "tokens_of_tags"):
        if not _naturals(about[name]):
            return f"{name} must be a list of whole numbers"
    if not isinstance(about["tags"], list) or not all(isinstance(tag, str) for tag in about["tags"]):
        return "tags must be a list of texts"
    if not isinstance(about["model"], str) or not _naturals([about["tokens"]]):
        return "model must be a text, and tokens a whole number"
    if type(about["tags_left_out"]) is not bool:
        return "tags_left_out must be true or false"
    layers, experts, tags = about["layers"], about["num_experts"], about["tags"]
    if not layers or not len(layers) == len(experts) == len(about["top_k"]):
        return "layers, num_experts and top_k must have an entry for each MoE layer"
    if len(set(tags)) != len(tags) or len(tags) != len(about["tokens_of_tags"]):
        return "tags and tokens_of_tags must have an entry for each tag"
    most = max(experts)
    if not 1 <= min(experts) <= most <= MAX_EXPERTS:
        return f"num_experts must be from 1 to {MAX_EXPERTS}"
    shape = (1 + len(tags), len(layers), most)
    shapes = {"counts": shape, "weights": shape, "pairs": (len(layers), most * (most - 1) // 2)}
    return _fault_of_arrays(arrays, shapes, experts)


def _fault_of_arrays(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], experts: list[int]
) -> str:
    for name, shape in shapes.items():
        if name not in arrays:
            return f"it has no {name}"
        if arrays[name].shape != shape:
            return f"{name} is {list(arrays[name].shape)}, and must be {list(shape)}"
    for name, array in arrays.items():
        if array.dtype != DTYPES[name][1]:
            return f"{name} is {array.dtype}, and must be {np.dtype(DTYPES[name][1])}"
        low = -1 if name == "stream" else 0
        if array.size and not (np.isfinite(array).all() and array.min() >= low):
            return f"{name} has numbers below {low}, or none"
    for row, size in enumerate(experts):
        if arrays["counts"][:, row, size:].any() or arrays["weights"][:, row, size:].any():
            return f"counts and weights name experts that layer {row} does not have"
    stream = arrays.get("stream")
    if stream is not None:
        if stream.ndim != 3 or stream.shape[1] != len(experts) or not prod(stream.shape):
            return f"stream is {list(stream.shape)}, and must be [tokens, {len(experts)}, k]"
        if (stream.max(axis=(0, 2)) >= np.array(experts)).any():
            return "stream names experts that are not there"
    return ""


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
