"""Who computes each family of operations of a model: what its spec asks of a backend, and the choice."""

import torch

from moesaic.core.log import get_logger
from moesaic.kernels.cpu import library
from moesaic.kernels.registry import Case, choose
from moesaic.models.spec import AttentionSpec, ExpertAttentionSpec, LatentAttentionSpec, LayerSpec, ModelSpec, MoESpec

log = get_logger(__name__)


def choose_backends(
    spec: ModelSpec,
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
    # What matrices are multiplied with decides what flows between operations: fp32 in the cpu backend.
    matrices = [
        Case(family="matrices", device=kind, activations="torch.float32", weights=weights, options=options)
        for options in _unique(_matrix_options(layer) for layer in spec.layers)
    ]
    chosen = {"matrices": choose(matrices, wanted)}
    activations = "torch.float32" if chosen["matrices"] == "cpu" else weights
    mixers = [layer.attention for layer in spec.layers]
    options = {
        "attention": _unique(
            _attention_options(mixer, block_size)
            for mixer in mixers
            if isinstance(mixer, AttentionSpec | ExpertAttentionSpec | LatentAttentionSpec)
        ),
        "norms": [()],
        "recurrent": [()],
        "router": _unique(_router_options(part) for layer in spec.layers for part in _routed(layer)),
    }
    for family, asked in options.items():
        kept = str(kv_dtype) if family == "attention" else weights
        cases = [
            Case(family=family, device=kind, activations=activations, weights=kept, options=o) for o in asked or [()]
        ]
        chosen[family] = choose(cases, wanted)
    _say(chosen, device, wanted)
    return chosen


def _matrix_options(layer: LayerSpec) -> tuple[tuple[str, object], ...]:
    return (("activation", layer.ffn.activation),)


def _attention_options(
    a: AttentionSpec | ExpertAttentionSpec | LatentAttentionSpec, block_size: int
) -> tuple[tuple[str, object], ...]:
    if isinstance(a, LatentAttentionSpec):
        return (
            ("block_size", block_size),
            ("num_heads", a.num_heads),
            ("num_kv_heads", 1),
            ("head_dim", a.cached_dim),
            ("latent_dim", a.latent_dim),
        )
    return (
        ("block_size", block_size),
        ("num_heads", a.num_heads),
        ("num_kv_heads", a.num_kv_heads),
        ("head_dim", a.head_dim),
    )


def _routed(layer: LayerSpec) -> list[MoESpec | ExpertAttentionSpec]:
    """The parts of a layer that have experts."""
    return [part for part in (layer.attention, layer.ffn) if isinstance(part, MoESpec | ExpertAttentionSpec)]


def _router_options(ffn: MoESpec | ExpertAttentionSpec) -> tuple[tuple[str, object], ...]:
    return (("num_experts", ffn.num_experts), ("top_k", ffn.router.top_k))


def _unique(options: "object") -> list[tuple[tuple[str, object], ...]]:
    return list(dict.fromkeys(options))  # type: ignore[call-overload]


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
