"""Hand-written model classes: built, filled, and run as the engine runs any model.

A class follows vLLM's conventions: `__init__(vllm_config, prefix)`, `get_input_embeddings(input_ids)`,
`forward(input_ids, positions)`, `compute_logits(hidden_states)` and `load_weights(weights)`. It is built twice: once
without memory, which tells its size and what it asks of kernels, and once to be filled.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.core.errors import CheckpointError, ConfigError, nearest
from moesaic.experts.fused import FusedMoE
from moesaic.experts.routing import Router
from moesaic.experts.stats import ExpertStats
from moesaic.experts.steering import Steering
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.context import Construction, RouterNote, building, running
from moesaic.layers.kv_cache import Cache, CacheSpec
from moesaic.layers.loading import Parts, expose
from moesaic.layers.moe_paged_attention import MoEPagedAttention
from moesaic.layers.step import Step
from moesaic.models.class_config import CacheSection, ClassConfig, ClassSpec, HFConfig, ModelSection
from moesaic.models.language_model import LanguageModel
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.plan import list_misses
from moesaic.weights.quantization import QuantizationPlan
from moesaic.weights.report import report_of
from moesaic.weights.scan import scan_numbers
from moesaic.weights.sources import Source

METHODS = ("get_input_embeddings", "forward", "compute_logits", "load_weights")


class ClassModel(LanguageModel):
    """A hand-written model as the engine sees it.

    Attributes:
        model: the class's own module.
        construction: what its layers said of themselves.
    """

    def __init__(self, model: nn.Module, spec: ClassSpec, construction: Construction) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.construction = construction
        self._gather_rows = construction.ctx.kernel("gather_rows")
        self.expert_stats = _tapped(construction.routers, construction.ctx.device)
        self.steering = _steering_of(construction.routers, construction.ctx.device)
        self.completed()

    @torch.inference_mode()
    def forward(self, batch: Batch, caches: Sequence[Cache]) -> Tensor:
        own = len(self.construction.attentions)
        self.pools.lend(caches[own:])
        with running(Step(batch), dict(zip(self.construction.attentions, caches[:own], strict=True))):  # type: ignore[arg-type]
            hidden: Tensor = self.model(batch.token_ids, batch.positions)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is not None and rows.shape[0] < hidden.shape[0]:
            hidden = self._gather_rows(hidden, rows)
        logits: Tensor = self.model.compute_logits(hidden)  # type: ignore[operator]
        return logits.float()

    def cache_specs(self) -> list[CacheSpec]:
        """One of each attention, then one of each pool of those whose experts keep keys and values."""
        own = [attention.cache_spec for attention in self.construction.attentions.values()]
        return [*own, *self.pools.cache_specs()]

    def weight_bytes(self) -> int:
        """Of its layers, and of what else the class holds."""
        plain = {p for p in self.model.parameters() if not p.is_meta}
        own = {id(w) for m in self.modules() if isinstance(m, Layer) for w in m.own_weights()}
        return super().weight_bytes() + sum(p.nbytes for p in plain if id(p) not in own)


def spec_of_class(cls: Any, config: Mapping[str, Any], where: str) -> ClassSpec:
    """What a class makes of a config: it is built without memory.

    Raises:
        ConfigError: the class lacks a method, or the config what every model has.
        UnsupportedError: the class did not read a key that may change what is computed.
    """
    absent = [name for name in METHODS if getattr(cls, name, None) is getattr(nn.Module, name, None)]
    if absent:
        raise ConfigError(f"the model class {cls.__name__} has no {', '.join(absent)}")
    hf_config = HFConfig(config, where)
    vocab_size, positions = _whole(hf_config, "vocab_size"), _whole(hf_config, "max_position_embeddings")
    meta = torch.device("meta")
    section = ModelSection(hf_config=hf_config, dtype=torch.float32, max_model_len=positions)
    model, construction = _construct(
        cls,
        ClassConfig(model_config=section, cache_config=CacheSection(block_size=16)),
        Construction(BuildContext(meta, torch.float32)),
    )
    expert_attentions = {path: m for path, m in model.named_modules() if isinstance(m, MoEPagedAttention)}
    if not construction.attentions and not expert_attentions:
        raise ConfigError(f"the model class {cls.__name__} has no Attention, so nothing of it would be paged")
    hf_config.finish()
    sizes = {loader.name: sum(math.prod(p.shape) for p in loader.parts.values()) for loader in expose(model)}
    asleep = sum(
        sum(sizes[f"{path}.{name}"] for name in layer.parameter_parts()) * (1 - layer.spec.router.top_k / experts)
        for path, layer in model.named_modules()
        if isinstance(layer, FusedMoE) and (experts := layer.spec.num_experts)
    )
    asleep += sum(
        size * (1 - layer.top_k / len(layer.experts))
        for path, layer in expert_attentions.items()
        for name, size in sizes.items()
        if name.startswith(f"{path}.experts.")
    )
    total = sum(sizes.values())
    return ClassSpec(
        vocab_size=vocab_size,
        max_position_embeddings=positions,
        num_parameters=total,
        num_active_parameters=round(total - asleep),
        asked=construction.asked,
        shares_prompts=not expert_attentions,
    )


def build_class_model(
    cls: Any,
    config: Mapping[str, Any],
    spec: ClassSpec,
    ctx: BuildContext,
    plan: QuantizationPlan,
    *,
    max_model_len: int,
    block_size: int,
    top_k: int | None = None,
) -> ClassModel:
    """The model, unfilled.

    Args:
        top_k: experts a token goes to, instead of the class's own. Raises ConfigError where that cannot be.
    """
    section = ModelSection(hf_config=HFConfig(config, "config.json"), dtype=ctx.dtype, max_model_len=max_model_len)
    whole = ClassConfig(
        model_config=section,
        cache_config=CacheSection(block_size=block_size),
        quant_config=plan if plan.quantised else None,
    )
    model, construction = _construct(cls, whole, Construction(ctx, quantised=plan.quantised))
    if top_k is not None:
        construction.routers = _with_top_k(construction.routers, top_k)
    return ClassModel(model, spec, construction)


def fill_from(model: ClassModel, source: Source, where: str, allow_nonfinite: bool = False) -> None:
    """Fill a model by its class's `load_weights`.

    Args:
        allow_nonfinite: load NaN and infinities too.

    Raises:
        CheckpointError: a part of a parameter was filled never, or twice; or a tensor is none of the model's, or has
            numbers that are not finite.
    """
    loaders = expose(model.model)
    own = _plain(model.model, loaders)
    for loader in own:
        loader.parts[""].fill_(math.nan)  # type: ignore[union-attr]
    last: list[str] = []
    try:
        model.model.load_weights(_weights(source, last, where, allow_nonfinite))  # type: ignore[operator]
    except KeyError as e:
        names = [name for name, _ in model.model.named_parameters()]
        close = nearest(str(e.args[0]), names) if e.args else []
        hint = f" (nearest parameter: {close[0]})" if close else ""
        raise CheckpointError(
            f"{where}: load_weights asked for {e} at tensor {last[-1] if last else None!r}, which is not there{hint}"
        ) from e
    unfilled = [name for loader in loaders if not (loader in own and _filled(loader)) for name in loader.unfilled()]
    repeated = [name for loader in loaders for name in loader.repeated()]
    if unfilled or repeated:
        lines = [
            *list_misses("not filled by load_weights", unfilled, lambda name: "through its weight_loader, or at all"),
            *list_misses("filled more than once", repeated, lambda name: "each must be filled exactly once"),
        ]
        raise CheckpointError(f"the checkpoint in {where} does not fill the model:\n" + "\n".join(lines))


def planned_parameters(model: ClassModel) -> dict[str, Any]:
    """What the quantization plan decides on, by the names that its patterns mean."""
    return {
        f"{prefix.removeprefix('model.')}.{name}": view
        for prefix, layer in model.construction.planned.items()
        for name, view in layer.named_views()
    }


def _plain(model: nn.Module, loaders: Iterable[Parts]) -> list[Parts]:
    """Loaders of parameters that belong to no layer of ours: they can be looked at."""
    paths = {path for path, module in model.named_modules() if isinstance(module, Layer)}
    return [loader for loader in loaders if loader.name.rpartition(".")[0] not in paths]


def _filled(loader: Parts) -> bool:
    """Whether a plain parameter was written to by other means than its weight_loader."""
    return not bool(loader.parts[""].isnan().any())  # type: ignore[union-attr]


def _construct(cls: Any, config: ClassConfig, construction: Construction) -> tuple[nn.Module, Construction]:
    ctx = construction.ctx
    with building(construction), _defaults(ctx.activations, ctx.device):
        return cls(vllm_config=config, prefix=""), construction


@contextmanager
def _defaults(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """What torch's own layers in a class are made with."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _weights(source: Source, last: list[str], where: str, allow_nonfinite: bool) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors, each read and looked at when it is its turn; `last` keeps their names."""
    for name, info in source.tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"tensor {name} is {info.dtype}; only {', '.join(FLOAT_DTYPES)} are read")
        tensor = torch.empty(info.shape, dtype=FLOAT_DTYPES[info.dtype])
        source.read(name, (), tensor)
        report = report_of({name: scan_numbers(tensor)}, {name: info.shape}, {name: name})
        if report.not_finite and not allow_nonfinite:
            raise CheckpointError(report.refusal(where))
        last.append(name)
        yield name, tensor


def _tapped(notes: Sequence[RouterNote], device: torch.device) -> ExpertStats:
    """Statistics with a row for each router. Experts that can choose by themselves share the row of a router in the
    same layer that has as many experts, for it is the one that chooses for them."""
    rows: list[list[RouterNote]] = []
    for note in sorted(notes, key=lambda note: isinstance(note.layer, FusedMoE)):
        alike = [row for row in rows if _place(row[0]) == _place(note)] if isinstance(note.layer, FusedMoE) else []
        if alike:
            alike[0].append(note)
        else:
            rows.append([note])
    stats = ExpertStats(len(rows), max((note.num_experts for note in notes), default=0), device)
    for i, row in enumerate(rows):
        tap = stats.tap(*_place(row[0]), row[0].top_k, row=i)
        for note in row:
            note.layer.tap = tap
    return stats


def _place(note: RouterNote) -> tuple[int, int]:
    """The decoder layer that a router lies in, by the first number in its prefix, and its number of experts."""
    found = re.search(r"(?:^|\.)(\d+)(?=\.|$)", note.prefix)
    return int(found[1]) if found else 0, note.num_experts


def _with_top_k(notes: Sequence[RouterNote], top_k: int) -> list[RouterNote]:
    """Routers of which each chooses so many experts. Raises ConfigError."""
    if not notes:
        raise ConfigError(f"moe_top_k is {top_k}, but this model has no experts: leave it out")
    for note in notes:
        if top_k > note.num_experts:
            raise ConfigError(f"moe_top_k is {top_k}, but {note.prefix or 'a router'} has {note.num_experts} experts")
        layer = note.layer
        if isinstance(layer, Router):
            layer.spec = replace(layer.spec, top_k=top_k)
        else:
            layer.spec = replace(layer.spec, router=replace(layer.spec.router, top_k=top_k))
    return [replace(note, top_k=top_k) for note in notes]


def _steering_of(notes: Sequence[RouterNote], device: torch.device) -> Steering:
    """Routers of ours, and experts that are given logits, follow what requests ask of their routes."""
    steering = Steering(device)
    routers = [note for note in notes if isinstance(note.layer, Router)]
    for note in notes:
        index, layer = _place(note)[0], note.layer
        layer.table = steering.table(index, note.num_experts, note.top_k)
        spec = layer.spec if isinstance(layer, Router) else layer.spec.router
        layer.stage = steering.custom.stage(index, spec, layer.kernels)
        if isinstance(layer, Router):
            if (type(layer).choose, type(layer).forward) != (Router.choose, Router.forward):
                steering.fixed = f"{type(layer).__name__} chooses experts by its own code"
        elif index not in {_place(router)[0] for router in routers}:
            layer.steering = steering
    return steering


def _whole(hf_config: HFConfig, key: str) -> int:
    value = hf_config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: {key} must be a whole number of at least 1, got {value!r}")
    return value
