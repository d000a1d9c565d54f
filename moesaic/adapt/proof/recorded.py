"""Recorded references: a safetensors file with what some model made of some tokens.

`input_ids.<n>` int64 `[T]` and `logits.<n>` fp32 `[T, V]` are all that is asked of a file; where they are there,
`hidden.<n>` `[L + 1, T, H]` (what each layer is given, and what the last one gives) says where two models part, and
`experts.<n>` int64 `[M, T, k]` (choices in each layer with experts) is shown beside it. Metadata says who recorded it.
"""

import json
import os
import re
from dataclasses import dataclass

import torch

from moesaic.adapt.proof.captured import Prompt
from moesaic.core.errors import CheckpointError, ConfigError

FORMAT = "moesaic recorded reference 1"
NAME = re.compile(r"(input_ids|logits|hidden|experts)\.(\d+)")


@dataclass(frozen=True)
class Recorded:
    """What a file holds.

    Attributes:
        source: who computed it, as the metadata says.
    """

    path: str
    source: str
    prompts: tuple[Prompt, ...]


def save_recorded(path: str, prompts: list[Prompt], source: str) -> None:
    """Write a file that `load_recorded` reads. Raises ConfigError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for n, prompt in enumerate(prompts):
        tensors[f"input_ids.{n}"] = torch.tensor(prompt.tokens)
        tensors[f"logits.{n}"] = prompt.logits.float().contiguous()
        if prompt.inputs:
            tensors[f"hidden.{n}"] = torch.stack(prompt.inputs).float()
        chosen = [ops["chosen experts"] for ops in prompt.ops if "chosen experts" in ops]
        if chosen and len({c.shape for c in chosen}) == 1:
            tensors[f"experts.{n}"] = torch.stack(chosen)
    starts = {"starts": json.dumps([prompt.start for prompt in prompts])}
    try:
        save_file(tensors, path, metadata={"format": FORMAT, "recorded_from": source, **starts})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def load_recorded(path: str, vocab_size: int) -> Recorded:
    """Read and check a file.

    Raises:
        CheckpointError: it is not there, damaged, or not about a model with this vocabulary; with the tensor's name.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise ConfigError(f"--reference {path}: there is no such file (hf is transformers' own model)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if NAME.fullmatch(name)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file that can be read: {error}") from error
    numbers = sorted(int(name.rpartition(".")[2]) for name in tensors if name.startswith("input_ids."))
    if not numbers:
        raise CheckpointError(f"{path} holds no input_ids.<n>: it is no recorded reference")
    starts = _starts(metadata, len(numbers))
    prompts = [_prompt(path, tensors, n, start, vocab_size) for n, start in zip(numbers, starts, strict=True)]
    return Recorded(path, metadata.get("recorded_from", "whoever made the file"), tuple(prompts))


def _starts(metadata: dict[str, str], count: int) -> list[int | None]:
    try:
        starts = json.loads(metadata.get("starts", "null"))
    except ValueError:
        starts = None
    good = isinstance(starts, list) and len(starts) == count and all(type(start) is int for start in starts)
    return starts if good else [None] * count


def _prompt(path: str, tensors: dict[str, torch.Tensor], n: int, start: int | None, vocab_size: int) -> Prompt:
    ids, logits, hidden = (tensors.get(f"{name}.{n}") for name in ("input_ids", "logits", "hidden"))
    if ids is None or ids.dim() != 1 or ids.dtype != torch.int64 or not len(ids):
        raise CheckpointError(f"{path}: input_ids.{n} must be int64 [T] with at least one token")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise CheckpointError(f"{path}: input_ids.{n} names a token outside of the model's {vocab_size}")
    if logits is None or tuple(logits.shape) != (len(ids), vocab_size) or not logits.is_floating_point():
        shape = "absent" if logits is None else f"{logits.dtype} {list(logits.shape)}"
        raise CheckpointError(f"{path}: logits.{n} must be float32 {[len(ids), vocab_size]}, is {shape}")
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f"{path}: logits.{n} holds numbers that are not finite: it is no reference")
    if hidden is not None and (hidden.dim() != 3 or hidden.shape[1] != len(ids)):
        raise CheckpointError(f"{path}: hidden.{n} must be [layers + 1, {len(ids)}, H], is {list(hidden.shape)}")
    inputs = list(hidden.float()) if hidden is not None else []
    ops = [{"layer": output} for output in inputs[1:]]
    return Prompt(ids.tolist(), min(max(start or len(ids), 1), len(ids)), logits.float(), inputs, ops)
