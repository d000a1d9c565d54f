"""The folder that a conversion writes: begun or gone on with, read back file by file, and closed with a manifest."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.core.log import get_logger
from moesaic.core.units import size_of
from moesaic.models.gguf.tokenizer import gguf_metadata, gguf_tokenizer, gguf_tokenizer_config
from moesaic.weights.containers.safetensors import read_header
from moesaic.weights.manifest import NAME, Entry, Manifest, hash_file
from moesaic.weights.rules import Shape

log = get_logger(__name__)

BESIDE = (".json", ".jinja", ".model", ".txt", ".py", ".tiktoken")  # what is copied along with the weights
NOT_BESIDE = ("config.json", NAME)
MOST_BESIDE = 100 << 20  # bytes; larger ones are no tokenizer's
SPARE = 64 << 20  # disk space that is left alone


def begin(dst: str, made: Mapping[str, object], force: bool, src: str) -> Manifest:
    """The manifest of a conversion into `dst`: a new one, or that of the same conversion, which was stopped.

    Raises:
        ConfigError: the folder holds something else.
    """
    if os.path.exists(dst) and os.path.samefile(dst, src):
        raise ConfigError(f"{dst} is the checkpoint itself: choose another folder to convert it into")
    if os.path.exists(dst) and not os.path.isdir(dst):
        raise ConfigError(f"{dst} is a file: choose a folder")
    try:
        os.makedirs(dst, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{dst} cannot be made: {error.strerror or error}") from error
    there = Manifest.load(dst)
    if there is not None and dict(there.made) == dict(made):
        there.complete = False
        return there
    if os.listdir(dst) and not force:
        what = "another conversion" if there is not None else "other files"
        raise ConfigError(f"{dst} holds {what}: choose an empty folder, or --force to write into it")
    for name in there.files if there is not None else ():
        if os.path.basename(name) == name and os.path.isfile(os.path.join(dst, name)):
            os.unlink(os.path.join(dst, name))
    manifest = Manifest(made)
    manifest.save(dst)
    return manifest


def check_space(dst: str, needed: int) -> None:
    """Raise ConfigError unless the disk has room for so many bytes."""
    free = shutil.disk_usage(dst).free
    if free < needed + SPARE:
        raise ConfigError(f"{dst}: {size_of(needed)} are to be written, {size_of(free)} are free")


def read_back(dst: str, name: str, digest: str, tensors: Mapping[str, tuple[str, Shape]]) -> Entry:
    """See that a file on disk is what was written. Raises CheckpointError."""
    path = os.path.join(dst, name)
    forget_pages(path)
    entry, infos = hash_file(path), read_header(path)
    found = {tensor: (info.dtype, info.shape) for tensor, info in infos.items()}
    if entry.sha256 != digest or found != {t: (d, tuple(s)) for t, (d, s) in tensors.items()}:
        raise CheckpointError(f"{path} does not read as it was written: the disk may be failing")
    return entry


def forget_pages(path: str) -> None:
    """Let the system drop what it holds of a file, so that the next read is from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def finish(src: str, dst: str, manifest: Manifest, files: Mapping[str, Any]) -> None:
    """Write the JSON files, copy what lies beside the weights, and close the manifest."""
    for name, value in files.items():
        with open(os.path.join(dst, name), "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
    copied = list(_copied(src, dst, files))
    for name in (*files, *copied):
        manifest.files[name] = hash_file(os.path.join(dst, name))
    manifest.complete = True
    manifest.save(dst)


def _copied(src: str, dst: str, written: Iterable[str]) -> Iterator[str]:
    """What lies beside the weights, or what a GGUF file tells in its place."""
    folder = src if os.path.isdir(src) else None
    for name in sorted(os.listdir(folder)) if folder is not None else ():
        path = os.path.join(src, name)
        wanted = name.endswith(BESIDE) and not name.endswith(".index.json") and name not in (*NOT_BESIDE, *written)
        if wanted and os.path.isfile(path) and os.path.getsize(path) <= MOST_BESIDE:
            shutil.copyfile(path, os.path.join(dst, name))
            yield name
    if not os.path.exists(os.path.join(dst, "tokenizer.json")) and (metadata := gguf_metadata(src)):
        yield from _tokenizer(metadata, src, dst)


def _tokenizer(metadata: Mapping[str, Any], src: str, dst: str) -> Iterator[str]:
    """The files of the tokenizer that a GGUF file's metadata describe; a warning where it is none that is known."""
    try:
        tokenizer = gguf_tokenizer(metadata, src)
    except ConfigError as e:
        log.warning("the tokenizer is left out: %s", e)
        return
    tokenizer.save(os.path.join(dst, "tokenizer.json"))
    with open(os.path.join(dst, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(gguf_tokenizer_config(metadata), file, indent=1)
    yield from ("tokenizer.json", "tokenizer_config.json")
