"""The way through a conversion to sharded safetensors with the names of Hugging Face."""

import os
from dataclasses import dataclass

from moesaic.adapt.conversion.folder import begin, check_space, finish, read_back
from moesaic.adapt.conversion.tensors import Checkpoint, config_of, finite, output_of
from moesaic.core.config import DType
from moesaic.core.errors import ConfigError, unknown_name
from moesaic.engine.resolve import find_model
from moesaic.weights.pack_cache import identify
from moesaic.weights.progress import progress_bar
from moesaic.weights.writing import in_shards, write_file

FORMATS = ("hf", "packed")


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
        hot_experts: file with a JSON object, layer -> list of experts, or with recorded routes, which give those
            that carry most weight: these experts have 8 bits, whatever the others have.
    """

    quantization: str = "auto"
    quantization_group_size: int = 128
    quantization_config: str | None = None
    hot_experts: str | None = None


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
            float32 stay, and those in float64 become that.
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
        from moesaic.adapt.conversion.packed import convert_packed

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
        output.values if allow_nonfinite else finite(checkpoint, output, src if dtype is None else f"{src} as {dtype}")
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


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
