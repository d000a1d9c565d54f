"""From a number to a mutated checkpoint: the same always."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.mutate_bytes import mutate_bytes, mutate_safetensors
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
ORDER = [kind for kind, (share, *_) in KINDS.items() for _ in range(share)]
assert len(ORDER) == 50


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


def kind_of(number: int) -> str:
    """Which kind of file number `number` mutates."""
    return ORDER[number * 7 % len(ORDER)]


def make_case(number: int, bases: Path, folder: Path) -> Case:
    """Write mutated checkpoint `number` into `folder`, which must not be there; files that stay good are linked."""
    kind = kind_of(number)
    _, names, pattern, mutate = KINDS[kind]
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
