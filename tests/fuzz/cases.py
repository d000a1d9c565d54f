"""From a number to a mutated checkpoint: the same always."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.bases import RECORDED
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_names, mutate_safetensors
from tests.fuzz.mutate_folder import mutate_folder
from tests.fuzz.mutate_gguf import mutate_gguf
from tests.fuzz.mutate_json import mutate_json
from tests.fuzz.mutate_tokenizer import mutate_template, mutate_tokenizer, mutate_tokenizer_config

Mutate = Callable[[bytes, Random], bytes]
# kind -> of 50 numbers so many; the checkpoints that may be mutated; the file; how
KINDS: dict[str, tuple[int, tuple[str, ...], str, Mutate | None]] = {
    "safetensors": (11, ("safetensors",), "model.safetensors", mutate_safetensors),
    "gguf": (10, ("gguf",), "model.gguf", mutate_gguf),
    "config": (8, ("safetensors", "bin"), "config.json", mutate_json),
    "index": (4, ("sharded",), "model.safetensors.index.json", mutate_json),
    "tokenizer": (6, ("safetensors",), "tokenizer.json", mutate_tokenizer),
    "tokenizer config": (2, ("safetensors",), "tokenizer_config.json", mutate_tokenizer_config),
    "template": (2, ("safetensors",), "chat_template.jinja", mutate_template),
    "bin": (2, ("bin", "old_bin"), "pytorch_model.bin", mutate_bytes),
    "hdf5": (1, ("hdf5",), "weights_0.h5", mutate_bytes),
    "directories": (1, ("directories",), "model/layers/*/mlp/experts/*/*.pt", mutate_bytes),
    "folder": (3, ("safetensors", "sharded", "bin", "hdf5", "directories", "gguf"), "", None),
}
# The same for the tools around checkpoints.
TOOL_KINDS: dict[str, tuple[int, tuple[str, ...], str, Mutate | None]] = {
    "config": (14, ("niche", "niche", "safetensors", "bin"), "config.json", mutate_json),
    "safetensors": (8, ("safetensors",), "model.safetensors", mutate_safetensors),
    "names": (4, ("safetensors",), "model.safetensors", mutate_names),
    "gguf": (6, ("gguf",), "model.gguf", mutate_gguf),
    "recorded": (6, ("recorded",), RECORDED, mutate_safetensors),
    "directories": (3, ("niche", "directories"), "**/*.[bp][it]*", mutate_bytes),
    "index": (2, ("sharded",), "model.safetensors.index.json", mutate_json),
    "bin": (2, ("bin", "old_bin"), "pytorch_model.bin", mutate_bytes),
    "hdf5": (1, ("hdf5",), "weights_0.h5", mutate_bytes),
    "folder": (4, ("niche", "sharded", "gguf", "directories"), "", None),
}
WAYS = {"serve": KINDS, "tools": TOOL_KINDS}  # what is done with a checkpoint -> what is mutated for that
ORDERS = {way: [kind for kind, (share, *_) in kinds.items() for _ in range(share)] for way, kinds in WAYS.items()}
assert all(len(order) == 50 for order in ORDERS.values())


@dataclass(frozen=True)
class Case:
    """A mutated checkpoint.

    Attributes:
        what: the file and, of folders, what was done.
        size: bytes of the mutated file.
    """

    number: int
    kind: str
    base: str
    what: str
    size: int


def kind_of(number: int, way: str = "serve") -> str:
    """Which kind of file number `number` mutates."""
    order = ORDERS[way]
    return order[number * 7 % len(order)]


def make_case(number: int, bases: Path, folder: Path, way: str = "serve") -> Case:
    """Write mutated checkpoint `number` into `folder`, which must not be there; files that stay good are linked."""
    kind = kind_of(number, way)
    _, names, pattern, mutate = WAYS[way][kind]
    r = Random(f"moesaic {number}")
    base = r.choice(names)
    shutil.copytree(bases / base, folder, copy_function=os.link)
    if mutate is None:
        return Case(number, kind, base, mutate_folder(folder, r), 0)
    file = r.choice(sorted(folder.glob(pattern)))
    data = mutate(file.read_bytes(), r)
    file.unlink()
    file.write_bytes(data)
    return Case(number, kind, base, str(file.relative_to(folder)), len(data))
