"""From a checkpoint's folder to what it computes, and to a model ready to run. Torch is imported when needed."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from moesaic.core.collector import collector_paused
from moesaic.core.config import ModelConfig
from moesaic.core.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.core.log import get_logger
from moesaic.models.class_config import ClassSpec
from moesaic.models.config_reader import PACKED_KEY, ConfigReader, eos_token_ids, read_config
from moesaic.models.implementation import choose_implementation
from moesaic.models.naming import rules_of
from moesaic.models.plausible import beyond_any_model
from moesaic.models.registry import Architecture, ModelRegistry, architecture_in
from moesaic.models.spec import ModelSpec

if TYPE_CHECKING:
    from moesaic.layers.base import BuildContext
    from moesaic.models.decoder import Decoder
    from moesaic.models.hf_backend.build import ForeignModels
    from moesaic.models.hf_backend.facts import ForeignSpec
    from moesaic.models.language_model import LanguageModel
    from moesaic.weights.layouts.packed import PackedSource
    from moesaic.weights.quantization import QuantizationPlan
    from moesaic.weights.report import LoadReport
    from moesaic.weights.rules import AnyRule
    from moesaic.weights.sources import Source
    from moesaic.weights.staging import Target

Spec = ModelSpec | ClassSpec
log = get_logger(__name__)

__all__ = ["Spec", "describe_model", "eos_token_ids", "load_model", "read_config", "read_spec", "spec_of"]


def read_spec(path: str, arch: str | None = None) -> tuple[Architecture, Spec]:
    """What the checkpoint in folder `path` computes. Raises ConfigError or CheckpointError.

    Args:
        arch: file with the architecture; None for the one that the config names.
    """
    return spec_of(read_config(path), os.path.join(path, "config.json"), arch)


def spec_of(config: dict[str, Any], where: str = "config.json", arch: str | None = None) -> tuple[Architecture, Spec]:
    """What a model with this config computes; every key is accounted for. Raises ConfigError."""
    architecture = ModelRegistry.resolve(config) if arch is None else architecture_in(arch)
    if beyond := beyond_any_model(config):
        raise ConfigError(f"{where}: {beyond}")
    if architecture.spec is None:
        from moesaic.models.class_model import spec_of_class

        return architecture, spec_of_class(architecture.model_class, config, where)
    reader = ConfigReader(config, where)
    spec = architecture.spec(reader)
    reader.finish()
    return architecture, spec


def describe_model(
    path: str, model_impl: str = "auto", trust_remote_code: bool = False, arch: str | None = None
) -> "tuple[str, Spec | ForeignSpec]":
    """The architecture's name and the facts of the checkpoint in folder `path`, whoever computes it.

    Raises:
        ConfigError, CheckpointError: the config cannot be read, or nothing here computes it.
    """
    config = read_config(path)
    chosen = choose_implementation(config, path, model_impl, trust_remote_code, arch)
    if isinstance(chosen, Architecture):
        architecture, spec = spec_of(config, os.path.join(path, "config.json"), arch)
        return architecture.name, spec
    from moesaic.models.hf_backend.facts import read_facts

    return chosen.architecture, read_facts(path, chosen)


MOST_LARGER = 8  # times the tensors' elements, as far as they are known, that a model may have
LEAST_CACHED = 64 << 20  # bytes of packed weights from which a start gains by finding them packed


def load_model(
    config: ModelConfig, device: str, block_size: int = 16, progress: bool = True, kv_dtype: str | None = None
) -> "LanguageModel | ForeignModels":
    """The model, its parameters filled. Raises ConfigError or CheckpointError.

    Args:
        block_size, kv_dtype: of the cache that it will be run on; None for the model's dtype.
    """
    if config.verify_weights:
        from moesaic.weights.manifest import verify

        verify(config.path)
    chosen = choose_implementation(
        read_config(config.path), config.path, config.model_impl, config.trust_remote_code, config.arch
    )
    if isinstance(chosen, Architecture):
        with collector_paused():
            return load_native(config, device, block_size, progress, kv_dtype)
    if PACKED_KEY in read_config(config.path):
        raise UnsupportedError(
            f"{config.path} is packed for our own kernels, and transformers' code is to compute it: leave --model-impl "
            "out, or use the checkpoint that it was made of"
        )
    import torch

    from moesaic.models.hf_backend.build import build

    return build(config, chosen, torch.device(device), block_size, getattr(torch, kv_dtype or config.dtype))


@dataclass(frozen=True)
class Opened:
    """A checkpoint of ours that is to be loaded: what it computes, where its weights are, and how they will be kept.

    Attributes:
        source: None for dummy weights.
    """

    config: ModelConfig
    architecture: Architecture
    spec: Spec
    source: "Source | None"
    ctx: "BuildContext"
    plan: "QuantizationPlan"


def open_native(config: ModelConfig, device: str, block_size: int, kv_dtype: str | None) -> Opened:
    """What `load_native` builds a model of."""
    import torch

    from moesaic.layers.base import BuildContext
    from moesaic.models.backends import choose_backends
    from moesaic.weights.codecs import decoded
    from moesaic.weights.layouts.packed import PACKED
    from moesaic.weights.quantization import QuantizationPlan
    from moesaic.weights.sources import open_source

    architecture, spec = read_spec(config.path, config.arch)
    if config.moe_top_k is not None and isinstance(spec, ModelSpec):
        spec = spec.with_top_k(config.moe_top_k)
    plan = QuantizationPlan.read(
        config.dtype, config.quantization, config.quantization_group_size, config.quantization_config
    )
    source = None
    if config.load_format != "dummy":
        source = decoded(open_source(config.path, config.load_format), read_config(config.path))
    where, dtype = torch.device(device), getattr(torch, config.dtype)
    cache_dtype = dtype if kv_dtype is None else getattr(torch, kv_dtype)
    backends = choose_backends(spec, where, dtype, cache_dtype, block_size, config.moe_backend)
    packed = source is not None and source.naming == PACKED
    if (plan.quantised or packed) and backends["matrices"] != "cpu":
        what = f"{config.path} is packed for" if packed else "quantised weights need"
        do = "use an unpacked checkpoint" if packed else "leave --quantization and --quantization-config out"
        raise UnsupportedError(
            f"{what} the C++ kernels, but {backends['matrices']} ones compute here, for the reason in the log: {do}"
        )
    ctx = BuildContext(where, dtype, kv_dtype=cache_dtype, backends=backends, moe_block_size=config.moe_block_size)
    return Opened(config, architecture, spec, source, ctx, plan)


def load_native(
    config: ModelConfig, device: str, block_size: int, progress: bool, kv_dtype: str | None
) -> "LanguageModel":
    """A model of ours, as `load_model` says."""
    from moesaic.layers.base import Layer

    opened = open_native(config, device, block_size, kv_dtype)
    model: LanguageModel
    if isinstance(opened.spec, ClassSpec):
        if opened.source is not None and opened.source.naming != "hf":
            raise UnsupportedError(
                f"{config.path}: a hand-written model takes its weights by its own names, not by "
                f"{opened.source.naming}'s"
            )
        plan = replace(opened.plan, everywhere=True)
        model = _load_class(config, opened.architecture, opened.spec, opened.ctx, plan, opened.source, block_size)
    else:
        model = _load_decoder(opened, opened.spec, progress)
    for module in model.modules():
        if isinstance(module, Layer):
            module.loaded()
    return model.eval()


def build_decoder(opened: Opened, spec: ModelSpec, rules: "list[AnyRule]") -> "tuple[Decoder, dict[str, Target], bool]":
    """The model, unfilled; its parameters; and whether some of them are quantised here."""
    from moesaic.models.decoder import Decoder
    from moesaic.models.stored import keep_stored
    from moesaic.weights.layouts.packed import PackedSource
    from moesaic.weights.packing import check_plan

    if isinstance(opened.source, PackedSource):
        from moesaic.weights.packed_model import packed_plan

        plan = packed_plan(opened.plan, opened.source, opened.config.path)
    else:
        plan = keep_stored(opened.plan, spec, replace(opened.ctx, formats=opened.plan.format_of), rules, opened.source)
    model = Decoder(spec, replace(opened.ctx, formats=plan.format_of))
    parameters = dict(model.named_views())
    check_plan(plan, parameters)
    return model, parameters, plan.requantised


def _load_decoder(opened: Opened, spec: ModelSpec, progress: bool) -> "LanguageModel":
    from moesaic.weights.layouts.packed import PackedSource
    from moesaic.weights.loader import fill_dummy

    source, config = opened.source, opened.config
    rules = rules_of(opened.architecture, spec, source.naming) if source is not None else []
    if source is not None and not isinstance(source, PackedSource):
        _check_size(config.path, spec, source)
    model, parameters, requantised = build_decoder(opened, spec, rules)
    if source is None:
        fill_dummy(parameters, config.seed)
    elif isinstance(source, PackedSource):
        _load_packed(source, rules, parameters, config.path)
    else:
        model.load_report = _load(config, rules, source, parameters, requantised, progress)
    return model


def _load_packed(
    source: "PackedSource", rules: "list[AnyRule]", parameters: "Mapping[str, Target]", where: str
) -> None:
    """Fill the parameters from a packed checkpoint. (Its numbers were looked at when they were packed.)"""
    from moesaic.weights.loader import load_weights
    from moesaic.weights.packed_model import fill_packed
    from moesaic.weights.sources import FilesSource

    start = time.perf_counter()
    vectors = fill_packed(source, parameters, where)
    nbytes = sum(size for file in source.files for size in file.regions)
    log.info("read %.1f MB of packed weights from %s in %.1f s", nbytes / 1e6, where, time.perf_counter() - start)
    load_weights(vectors, rules, FilesSource(source.vectors, source.naming), where, progress=False)


def _check_size(path: str, spec: ModelSpec, source: "Source") -> None:
    """Raise CheckpointError where a model is so much larger than its tensors that they cannot be its own, before memory
    is taken for it. (What is a little larger is told in detail once it is known what each tensor fills.)"""
    stored = sum(prod(info.shape) for info in source.tensors.values())
    if spec.num_parameters > MOST_LARGER * stored:
        raise CheckpointError(
            f"{path}: the config describes a model of {spec.num_parameters:,} parameters, the checkpoint holds "
            f"{stored:,}: they do not belong together"
        )


def _load_class(
    config: ModelConfig,
    architecture: Architecture,
    spec: ClassSpec,
    ctx: "BuildContext",
    plan: "QuantizationPlan",
    source: "Source | None",
    block_size: int,
) -> "LanguageModel":
    """A hand-written model, filled by its class (packed weights of such are not kept for the next start)."""
    from moesaic.layers.loading import dummy_targets, expose
    from moesaic.models.class_model import build_class_model, fill_from, planned_parameters
    from moesaic.weights.loader import fill_dummy
    from moesaic.weights.packing import check_plan

    model = build_class_model(
        architecture.model_class,
        read_config(config.path),
        spec,
        replace(ctx, formats=plan.format_of),
        plan,
        max_model_len=config.max_model_len,
        block_size=block_size,
        top_k=config.moe_top_k,
    )
    check_plan(plan, planned_parameters(model))
    if source is None:
        fill_dummy(dummy_targets(expose(model.model)), config.seed)
    else:
        fill_from(model, source, config.path, config.allow_nonfinite)
    return model


def _load(
    config: ModelConfig,
    rules: "list[AnyRule]",
    source: "Source",
    parameters: "Mapping[str, Target]",
    requantised: bool,
    progress: bool,
) -> "LoadReport":
    """Fill the parameters from the checkpoint; what is packed comes from the cache of packed weights if it is there.
    What is suspicious is not kept there, so that every start tells of it."""
    from moesaic.weights.loader import load_weights
    from moesaic.weights.pack_cache import PackCache, identify
    from moesaic.weights.packing import packed_matrices

    matrices, names = packed_matrices(parameters)
    wanted = config.force_pack_cache or (requantised and sum(m.nbytes for _, m in matrices) >= LEAST_CACHED)
    if config.pack_cache is None or not wanted or not matrices:
        return load_weights(parameters, rules, source, config.path, progress, allow_nonfinite=config.allow_nonfinite)
    cache = PackCache(config.pack_cache, config.path, identify(config.path, source), matrices)
    there = cache.load()
    filled = names if there else ()
    report = load_weights(parameters, rules, source, config.path, progress, filled, config.allow_nonfinite)
    if not there and not report.suspicious:
        cache.save()
    return report
