"""`convert`: a checkpoint in any readable layout, written anew as sharded safetensors with the names of Hugging Face.

A conversion goes file by file. Each is hashed while it is written, read back, and only then listed in the manifest, so
that one which was stopped goes on behind the last file that is known to be whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.core.config import DType
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError, unknown_name
from moesaic.core.log import get_logger
from moesaic.core.units import size_of
from moesaic.engine.resolve import find_model
from moesaic.models.gguf.tokenizer import gguf_metadata, gguf_tokenizer, gguf_tokenizer_config
from moesaic.models.load import read_config, read_spec
from moesaic.models.naming import rules_of
from moesaic.models.parameters import parameter_shapes
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.models.spellings import saved_names
from moesaic.weights.codecs import decoded
from moesaic.weights.containers.safetensors import read_header
from moesaic.weights.dtypes import FLOAT_DTYPES, NAMES
from moesaic.weights.export import Assembly, assemble, assemblies
from moesaic.weights.manifest import NAME, Entry, Manifest, hash_file
from moesaic.weights.pack_cache import identify
from moesaic.weights.plan import Copy, LoadPlan, plan_load
from moesaic.weights.progress import progress_bar
from moesaic.weights.report import DAMAGED, not_finite
from moesaic.weights.rules import Shape
from moesaic.weights.scan import scan_numbers
from moesaic.weights.sources import Source, open_source
from moesaic.weights.tensors import FLOATS
from moesaic.weights.writing import in_shards, write_file

log = get_logger(__name__)

BESIDE = (".json", ".jinja", ".model", ".txt", ".py", ".tiktoken")  # what is copied along with the weights
NOT_BESIDE = ("config.json", NAME)
MOST_BESIDE = 100 << 20  # bytes; larger ones are no tokenizer's
FORMATS = ("hf", "packed")
SPARE = 64 << 20  # disk space that is left alone


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        files: that hold weights; `kept` of them were there from a run that was stopped.
        tensors, nbytes: in these files.
    """

    path: str
    files: int
    kept: int
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Packing:
    """How weights are quantised when they are packed: the engine's arguments of these names.

    Attributes:
        hot_experts: file with a JSON object, layer -> list of experts: these have 8 bits, whatever the others have.
    """

    quantization: str = "auto"
    quantization_group_size: int = 128
    quantization_config: str | None = None
    hot_experts: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is to be converted.

    Attributes:
        source: its tensors as floats; `stored` as they are stored.
        plan: which of them fills which parameter.
        parameters: canonical name -> shape.
    """

    path: str
    config: Mapping[str, Any]
    architecture: Architecture
    spec: ModelSpec
    stored: Source
    source: Source
    plan: LoadPlan
    parameters: Mapping[str, Shape]

    @classmethod
    def open(cls, path: str, arch: str | None = None) -> "Checkpoint":
        """The checkpoint in a folder. Raises CheckpointError for what does not fill its model exactly."""
        architecture, spec = read_spec(path, arch)
        if not isinstance(spec, ModelSpec):
            raise UnsupportedError(f"{architecture.name} is a hand-written model: only its class knows its weights")
        config = read_config(path)
        stored = open_source(path)
        source = decoded(stored, config)
        parameters = parameter_shapes(spec)
        shapes = {name: info.shape for name, info in source.tensors.items()}
        plan = plan_load(parameters, rules_of(architecture, spec, source.naming), shapes, path)
        return cls(path, config, architecture, spec, stored, source, plan, parameters)

    @property
    def named_well(self) -> bool:
        """The names are Hugging Face's, and none stands for codes."""
        own = (self.stored.tensors.get(name) for name in self.source.tensors)
        return self.source.naming == "hf" and all(info is None or info.dtype in FLOATS for info in own)

    def parameter(self, copy: Copy, shape: Shape) -> Tensor:
        """A parameter, in the dtype in which it is stored."""
        dtype = FLOAT_DTYPES[self.source.tensors[copy.source].dtype]
        part = torch.empty(shape if copy.view is None else copy.view.shape, dtype=dtype)
        self.source.read(copy.source, copy.index, part)
        return part if copy.view is None else copy.view.take(part)


@dataclass(frozen=True)
class Output:
    """The tensors to write: name -> dtype (as safetensors spells it) and shape, and what gives each of them."""

    tensors: Mapping[str, tuple[str, Shape]]
    values: Callable[[str], Tensor]

    def nbytes(self, name: str) -> int:
        """Of one tensor."""
        dtype, shape = self.tensors[name]
        return FLOAT_DTYPES[dtype].itemsize * torch.Size(shape).numel()


def convert(
    src: str,
    dst: str,
    *,
    format: str = "hf",
    dtype: DType | None = None,
    packing: Packing | None = None,
    max_shard_size: int = 5_000_000_000,
    arch: str | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
    progress: bool = False,
) -> Converted:
    """Write the checkpoint `src` into folder `dst`, as sharded safetensors with the names of Hugging Face, or packed.

    Args:
        src: folder, GGUF file or Hugging Face id.
        format: "hf"; or "packed", as this machine's kernels read matrices.
        dtype: of matrices; as stored, or as codes decode to, by default (packed: as the config states). Vectors in
            float32 stay.
        packing: of format "packed": how weights are quantised.
        max_shard_size: bytes of a file.
        arch: file with the architecture, as `serve` takes it.
        force: write into a folder that holds something else.
        allow_nonfinite: write weights that hold NaN or infinity too.

    Raises:
        ConfigError: `dst` holds something else, or too little space is left.
        CheckpointError: the checkpoint does not fill its model exactly, a weight holds NaN or infinity, or what was
            written is not what is read back.
    """
    if format == "packed":
        from moesaic.adapt.packed_conversion import convert_packed

        return convert_packed(
            find_model(src),
            dst,
            packing or Packing(),
            dtype,
            max_shard_size,
            arch,
            force=force,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    if format != "hf" or packing is not None:
        raise ConfigError(
            f"{unknown_name('format', format, FORMATS)}; there are {', '.join(FORMATS)}"
            if format != "hf"
            else "weights are quantised where they are packed: say --format packed, or leave --quantization out"
        )
    checkpoint = Checkpoint.open(find_model(src), arch)
    output = output_of(checkpoint, dtype)
    values = (
        output.values if allow_nonfinite else _finite(checkpoint, output, src if dtype is None else f"{src} as {dtype}")
    )
    made = {
        "format": "hf",
        "dtype": dtype or "as stored",
        "max_shard_size": max_shard_size,
        "source": identify(checkpoint.path, checkpoint.stored),
        **({"allow_nonfinite": True} if allow_nonfinite else {}),
    }
    manifest = begin(dst, made, force, checkpoint.path)
    sizes = {name: output.nbytes(name) for name in output.tensors}
    shards = in_shards(sizes, max_shard_size)
    names = [_shard_name(i, len(shards)) for i in range(len(shards))]
    kept = {name for name in names if manifest.holds(dst, name)}
    check_space(
        dst, sum(sizes[t] for name, tensors in zip(names, shards, strict=True) if name not in kept for t in tensors)
    )
    with progress_bar("converting", sum(sizes.values()), progress) as advance:
        for name, tensors in zip(names, shards, strict=True):
            if name in kept:
                advance(sum(sizes[tensor] for tensor in tensors))
                continue
            chosen = {tensor: output.tensors[tensor] for tensor in tensors}
            digest = write_file(os.path.join(dst, name), chosen, values, {"format": "pt"}, advance)
            manifest.files[name] = read_back(dst, name, digest, chosen)
            manifest.save(dst)
    files = {"config.json": config_of(checkpoint.config, dtype)}
    if len(shards) > 1:
        where = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        files["model.safetensors.index.json"] = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": where,
        }
    finish(checkpoint.path, dst, manifest, files)
    return Converted(dst, len(shards), len(kept), len(sizes), sum(sizes.values()))


def output_of(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """The tensors that make the checkpoint anew, by the names of Hugging Face."""
    if checkpoint.named_well:
        return _renamed(checkpoint, dtype)
    return _assembled(checkpoint, dtype)


def _renamed(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """All tensors under the names that they have, those that the model does not need among them."""
    infos = {name: info for name, info in checkpoint.source.tensors.items() if info.dtype in FLOATS}

    def values(name: str) -> Tensor:
        whole = torch.empty(infos[name].shape, dtype=FLOAT_DTYPES[infos[name].dtype])
        checkpoint.source.read(name, (), whole)
        return whole.to(FLOAT_DTYPES[tensors[name][0]])

    tensors = {name: (_dtype(info.dtype, info.shape, dtype), info.shape) for name, info in infos.items()}
    return Output(tensors, values)


def _assembled(checkpoint: Checkpoint, dtype: DType | None) -> Output:
    """The model's parameters, put together as the architecture's own rules name them."""
    found = assemblies(
        checkpoint.parameters,
        checkpoint.architecture.rules(checkpoint.spec),
        saved_names(checkpoint.architecture.name),
    )
    copies = {copy.target: copy for copy in checkpoint.plan.copies}
    infos = checkpoint.source.tensors

    def stored_as(assembly: Assembly) -> str:
        kinds = [infos[copies[name].source].dtype for name, _ in assembly.parts if name in copies]
        return max(kinds, key=FLOATS[::-1].index) if kinds else "F32"

    def parameter(name: str) -> Tensor:
        shape = checkpoint.parameters[name]
        return checkpoint.parameter(copies[name], shape) if name in copies else torch.zeros(shape)

    def values(name: str) -> Tensor:
        return assemble(found[name], FLOAT_DTYPES[tensors[name][0]], parameter)

    tensors = {name: (_dtype(stored_as(a), a.shape, dtype), a.shape) for name, a in found.items()}
    return Output(tensors, values)


def _finite(checkpoint: Checkpoint, output: Output, where: str) -> Callable[[str], Tensor]:
    """What gives each tensor, and raises CheckpointError for one that the model computes with and that holds NaN or
    infinity. (What it does not compute with may well: a mask does.)"""
    used = {copy.source for copy in checkpoint.plan.copies} if checkpoint.named_well else output.tensors.keys()

    def values(name: str) -> Tensor:
        tensor = output.values(name)
        scan = scan_numbers(tensor) if name in used else None
        if scan is not None and scan.nonfinite:
            found = not_finite(name, name, scan, tuple(tensor.shape))
            raise CheckpointError(
                f"{where}: a weight holds NaN or infinity, so {DAMAGED} (--allow-nonfinite converts it all the same):\n"
                f"  {found}"
            )
        return tensor

    return values


def _dtype(stored: str, shape: Shape, wanted: DType | None) -> str:
    """What a tensor is written in."""
    keep = wanted is None or (len(shape) < 2 and stored == "F32")
    return stored if keep else NAMES[getattr(torch, str(wanted))]


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


def config_of(config: Mapping[str, Any], dtype: DType | None) -> dict[str, Any]:
    """The config of floats: nothing of quantisation, and the dtype that was asked for."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if dtype is None:
        return kept
    text = kept.get("text_config")
    for part in (kept, text if isinstance(text, dict) else {}):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    return kept if "torch_dtype" in kept else {**kept, "dtype": dtype}


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


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
