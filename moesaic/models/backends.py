"""Who computes each family of operations of a model: what its spec asks of a backend, and the choice."""

from collections.abc import Iterable
from typing import Any

import torch

from moesaic.core.log import get_logger
from moesaic.kernels.cpu import library
from moesaic.kernels.registry import FAMILIES, Case, choose
from moesaic.models.class_config import ClassSpec
from moesaic.models.spec import (
    AttentionSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    MoESpec,
)

log = get_logger(__name__)

Options = tuple[tuple[str, Any], ...]


def choose_backends(
    spec: ModelSpec | ClassSpec,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    block_size: int,
    wanted: str = "auto",
) -> dict[str, str]:
    """Family of operations -> backend, for a whole model.

    Args:
        dtype: of weights.
        kv_dtype: of the cache.
        wanted: "auto" for the best that can serve each family, or a backend that must serve all.

    Raises:
        UnsupportedError: the backend asked for cannot serve; the message has its reason.
    """
    kind, weights = device.type, str(dtype)
    asked_for = asked_of_spec(spec) if isinstance(spec, ModelSpec) else spec.asked
    options = {family: _unique(asked_for.get(family, ())) or [()] for family in FAMILIES}
    options["attention"] = [(("block_size", block_size), *asked) for asked in options["attention"]]
    # What matrices are multiplied with decides what flows between operations: fp32 in the cpu backend.
    matrices = [
        Case(family="matrices", device=kind, activations="torch.float32", weights=weights, options=asked)
        for asked in options.pop("matrices")
    ]
    chosen = {"matrices": choose(matrices, wanted)}
    activations = "torch.float32" if chosen["matrices"] == "cpu" else weights
    for family, asked in options.items():
        kept = str(kv_dtype) if family == "attention" else weights
        cases = [Case(family=family, device=kind, activations=activations, weights=kept, options=o) for o in asked]
        chosen[family] = choose(cases, wanted)
    _say(chosen, device, wanted)
    return chosen


def asked_of_spec(spec: ModelSpec) -> dict[str, list[Options]]:
    """What the layers of a spec ask of kernels, by family of operations: options of `Case`."""
    return {
        "matrices": [(("activation", ffn.activation),) for layer in spec.layers for ffn in layer.feed_forwards],
        "attention": [options for layer in spec.layers for options in _attention_options(layer.attention)],
        "router": [_router_options(part) for layer in spec.layers for part in _routed(layer)],
    }


def _attention_options(a: MixerSpec) -> list[Options]:
    if isinstance(a, LatentAttentionSpec):
        sizes = ("num_kv_heads", 1), ("head_dim", a.cached_dim), ("latent_dim", a.latent_dim)
        return [(("num_heads", a.num_heads), *sizes)]
    if isinstance(a, AttentionSpec | ExpertAttentionSpec | ExpertPagedAttentionSpec):
        return [(("num_heads", a.num_heads), ("num_kv_heads", a.num_kv_heads), ("head_dim", a.head_dim))]
    return []


Routed = MoESpec | ExpertAttentionSpec | ExpertPagedAttentionSpec


def _routed(layer: LayerSpec) -> list[Routed]:
    """The parts of a layer that have experts."""
    return [part for part in (layer.attention, layer.moe) if isinstance(part, Routed)]


def _router_options(part: Routed) -> Options:
    choices = part.num_choices if isinstance(part, MoESpec) else part.num_experts
    return (("num_experts", choices), ("top_k", part.router.top_k))


def _unique(options: Iterable[Options]) -> list[Options]:
    return list(dict.fromkeys(options))


def _say(chosen: dict[str, str], device: torch.device, wanted: str) -> None:
    """Log the choice; warn where a CPU runs without the kernels made for it."""
    names = sorted(set(chosen.values()))
    which = names[0] if len(names) == 1 else ", ".join(f"{family} {name}" for family, name in chosen.items())
    log.info("kernels on %s: %s", device.type, f"{which} ({library.describe()})" if "cpu" in names else which)
    if device.type == "cpu" and wanted == "auto":
        reason = library.describe()
        if reason.startswith("unavailable"):
            log.warning(
                "the C++ kernels are %s. Plain torch computes instead, about 3 to 5 times slower while tokens are "
                "generated, and it cannot quantise",
                reason,
            )
