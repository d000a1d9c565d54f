"""`convert --format packed`: a checkpoint as the CPU's kernels keep it in memory, quantised or not.

The model is built and filled as for serving; then the pages that its matrices lie in are written as they are, in files
of whole regions, and the vectors beside them. Memory: the model, and a tensor.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from moesaic.adapt.conversion.convert import Converted, Packing
from moesaic.adapt.conversion.folder import begin, check_space, finish, forget_pages
from moesaic.adapt.conversion.tensors import config_of
from moesaic.core.config import DType, ModelConfig
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.engine.resolve import checkpoint_dtype
from moesaic.experts.profile_file import SUFFIX as SUFFIX_OF_ROUTES
from moesaic.experts.profile_file import hottest, read_routes
from moesaic.kernels.cpu.library import isa
from moesaic.kernels.cpu.packed import pack_version
from moesaic.models.config_reader import PACKED_KEY
from moesaic.models.load import Opened, build_decoder, open_native, read_config
from moesaic.models.naming import rules_of
from moesaic.models.spec import ModelSpec
from moesaic.weights.containers import packed, safetensors
from moesaic.weights.containers.packed import SUFFIX, VERSION
from moesaic.weights.dtypes import NAMES
from moesaic.weights.layouts.packed import PACKED, VECTORS
from moesaic.weights.loader import load_weights
from moesaic.weights.manifest import Entry, Manifest, hash_file
from moesaic.weights.pack_cache import identify
from moesaic.weights.packed_file import write_regions
from moesaic.weights.packed_model import PackedParts, vectors_of
from moesaic.weights.sources import Source
from moesaic.weights.staging import Target
from moesaic.weights.writing import write_file

HOT = "w8a16"
HOT_SHARE = 0.25  # of the experts of a layer, where recorded routes say which are hot


def convert_packed(
    src: str,
    dst: str,
    packing: Packing,
    dtype: DType | None,
    max_shard_size: int,
    arch: str | None,
    *,
    force: bool,
    allow_nonfinite: bool,
    progress: bool,
) -> Converted:
    """Write the checkpoint in folder `src` into `dst`, packed. Arguments and errors are those of `convert`."""
    opened = _open(src, packing, dtype, arch)
    spec, source = cast(ModelSpec, opened.spec), cast(Source, opened.source)
    rules = rules_of(opened.architecture, spec, source.naming)
    _, parameters, _ = build_decoder(opened, spec, rules)
    parts = PackedParts(parameters)
    about = {"version": VERSION, "dtype": opened.config.dtype, "quantization": _quantization(opened.config)}
    made = {
        "format": "packed",
        **about,
        "max_shard_size": max_shard_size,
        "pack": list(pack_version()),
        "isa": isa(),
        "source": identify(src, source),
        **({"allow_nonfinite": True} if allow_nonfinite else {}),
    }
    manifest = begin(dst, made, force, src)
    files = parts.in_files(max_shard_size)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}{SUFFIX}" for i in range(len(files))]
    there = [regions for name, regions in zip(names, files, strict=True) if manifest.holds(dst, name)]
    check_space(dst, sum(_nbytes(parts, regions) for regions in files if regions not in there))
    filled = parts.within(there)
    report = load_weights(parameters, rules, source, src, progress, filled, allow_nonfinite)
    for number, (name, regions) in enumerate(zip(names, files, strict=True)):
        if regions in there:
            continue
        header = {**about, "number": number, "files": len(files), "remarks": report.warnings(src)}
        manifest.files[name] = _write(dst, name, parts, regions, header)
        manifest.save(dst)
    vectors = _write_vectors(dst, parameters, parts, manifest)
    config = {**config_of(_config_of_source(src), opened.config.dtype), PACKED_KEY: {**about, "isa": isa()}}
    finish(src, dst, manifest, {"config.json": config})
    nbytes = sum(manifest.files[name].size for name in (*names, VECTORS))
    return Converted(dst, len(files) + 1, len(there), len(parts.inside) + vectors, nbytes)


def _config_of_source(src: str) -> Mapping[str, Any]:
    """The config of what is packed, without what another program says of how it was kept."""
    return {key: value for key, value in read_config(src).items() if key != "compression_config"}


def hot_patterns(path: str) -> str:
    """The patterns of a quantization config that give 8 bits to the experts that a file names; of a file of recorded
    routes, to those that carry most routing weight, a quarter of each layer.

    Raises:
        ConfigError: the file is neither recorded routes nor a JSON object of layer -> experts.
        CheckpointError: the recorded routes are damaged.
    """
    if path.endswith(SUFFIX_OF_ROUTES):
        return _patterns(hottest(read_routes(path), HOT_SHARE))
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as e:
        raise ConfigError(f"--hot-experts: cannot read {path}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"--hot-experts: {path} is no JSON: {e}") from e
    lists = found.items() if isinstance(found, dict) else [("", None)]
    for layer, experts in lists:
        whole = isinstance(experts, list) and all(type(e) is int and e >= 0 for e in experts)
        if not whole or not layer.isdecimal():
            raise ConfigError(
                f"--hot-experts: {path} must hold a JSON object of layers and their hot experts, such as "
                f'{{"0": [3, 17], "1": [5]}}; at {layer!r} it does not'
            )
    return _patterns({int(layer): experts for layer, experts in lists})


def _patterns(experts_of: Mapping[int, list[int]]) -> str:
    return ",".join(
        f"layers.{layer}.*.experts.{e}={HOT}" for layer, experts in experts_of.items() for e in sorted(set(experts))
    )


def _open(src: str, packing: Packing, dtype: DType | None, arch: str | None) -> Opened:
    """The checkpoint, with the formats that are asked for. Raises UnsupportedError for what is not packed."""
    config = packing.quantization_config or ""
    if packing.hot_experts is not None:
        if packing.quantization == "auto":
            raise ConfigError("--hot-experts names those that keep 8 bits: say --quantization w4a16 for the others")
        if config.lstrip().startswith("{"):
            raise ConfigError("--hot-experts needs --quantization-config as pattern=format by commas, not as JSON")
        config = ",".join(part for part in (hot_patterns(packing.hot_experts), config) if part)
    model = ModelConfig(
        path=src,
        name=src,
        dtype=dtype or cast(DType, checkpoint_dtype(read_config(src))),
        max_model_len=1,
        load_format="auto",
        seed=0,
        moe_backend="cpu",
        quantization=packing.quantization,
        quantization_group_size=packing.quantization_group_size,
        quantization_config=config,
        arch=arch,
    )
    opened = open_native(model, "cpu", 16, None)
    if not isinstance(opened.spec, ModelSpec):
        raise UnsupportedError(
            f"{opened.architecture.name} is a hand-written model, and the matrices of such are not packed: convert it "
            "with --format hf"
        )
    if opened.source is not None and opened.source.naming == PACKED:
        raise UnsupportedError(f"{src} is packed already: convert the checkpoint that it was made of")
    return opened


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """As `QuantizationPlan.read` takes it."""
    size = config.quantization_group_size
    return {"scheme": config.quantization, "group_size": size, "config": config.quantization_config}


def _nbytes(parts: PackedParts, regions: range) -> int:
    return sum(parts.regions[number].nbytes for number in regions)


def _write(dst: str, name: str, parts: PackedParts, regions: range, about: Mapping[str, Any]) -> Entry:
    """Write one file and read it back. Raises CheckpointError where it is not what was written."""
    path, digest = os.path.join(dst, name), hashlib.sha256()
    temporary = f"{path}.tmp"
    try:
        write_regions(
            temporary, parts.header(regions, about), [parts.regions[number] for number in regions], digest.update
        )
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    packed.read_header(path)
    return _read_back(path, digest.hexdigest())


def _read_back(path: str, digest: str) -> Entry:
    forget_pages(path)
    entry = hash_file(path)
    if entry.sha256 != digest:
        raise CheckpointError(f"{path} does not read as it was written: the disk may be failing")
    return entry


def _write_vectors(dst: str, parameters: Mapping[str, Target], parts: PackedParts, manifest: Manifest) -> int:
    """Write what lies in no matrix; how many there are."""
    vectors = vectors_of(parameters, parts)
    path = os.path.join(dst, VECTORS)
    kinds = {name: (NAMES[vector.dtype], tuple(vector.shape)) for name, vector in vectors.items()}
    digest = write_file(path, kinds, lambda name: vectors[name].detach(), {"format": "pt"})
    safetensors.read_header(path)
    manifest.files[VECTORS] = _read_back(path, digest)
    manifest.save(dst)
    return len(vectors)
