"""The C++ backend as `kernels.registry` sees it: its operations by name, and what it cannot serve.

Activations are fp32 in all of it (docs/cpu-backend.md).
"""

from collections.abc import Callable

from moesaic.kernels.cpu.attention import (
    paged_attention,
    plan_attention,
    prepare_qkv,
    query_temperature,
    rope_table,
    rotate,
    write_kv,
)
from moesaic.kernels.cpu.elementwise import add_bias, add_identity, apply_gate, mix, softcap
from moesaic.kernels.cpu.expert_linear import gather_linear, spread_linear
from moesaic.kernels.cpu.heads import clamp, norm_heads
from moesaic.kernels.cpu.indexer import prepare_index, select_positions, selected_attention
from moesaic.kernels.cpu.latent import head_linear, prepare_latent
from moesaic.kernels.cpu.library import Unavailable, isa
from moesaic.kernels.cpu.matmul import ACTIVATIONS, activated_linear, fused_moe, gated_linear, linear
from moesaic.kernels.cpu.norm import add_layer_norm, add_rms_norm, embed, gather_rows, layer_norm, rms_norm
from moesaic.kernels.cpu.recurrent import (
    causal_conv,
    gated_delta,
    gated_norm,
    linear_attention,
    selective_scan,
    ssd_scan,
)
from moesaic.kernels.cpu.router import route, route_changes, route_logits, route_replace, route_scores, route_seconds
from moesaic.kernels.registry import Case

__all__ = [
    "activated_linear",
    "add_bias",
    "add_identity",
    "add_layer_norm",
    "add_rms_norm",
    "apply_gate",
    "causal_conv",
    "clamp",
    "embed",
    "fused_moe",
    "gated_delta",
    "gated_linear",
    "gated_norm",
    "gather_linear",
    "gather_rows",
    "head_linear",
    "layer_norm",
    "linear",
    "linear_attention",
    "mix",
    "norm_heads",
    "paged_attention",
    "plan_attention",
    "prepare_index",
    "prepare_latent",
    "prepare_qkv",
    "query_temperature",
    "rms_norm",
    "rope_table",
    "rotate",
    "route",
    "route_changes",
    "route_logits",
    "route_replace",
    "route_scores",
    "route_seconds",
    "select_positions",
    "selected_attention",
    "selective_scan",
    "softcap",
    "spread_linear",
    "ssd_scan",
    "supports",
    "write_kv",
]

NAME = "cpu"


def supports(case: Case) -> str | None:
    """Why `case` cannot be served, or None. Raises ConfigError where MOESAIC_ISA asks for what there is not."""
    if case.device != "cpu":
        return f"it computes on the CPU, the model is on {case.device}"
    try:
        isa()
    except Unavailable as reason:
        return str(reason)
    if case.activations != "torch.float32":
        return f"its activations are in float32, the model's in {case.activations.removeprefix('torch.')}"
    return _CHECKS[case.family](case) if case.family in _CHECKS else f"{case.family} is not implemented"


def _matrices(case: Case) -> str | None:
    if case.weights not in ("torch.float32", "torch.bfloat16", "torch.float16"):
        return f"weights in {case.weights} are not packed"
    activation = case.option("activation")
    return None if activation is None or activation in ACTIVATIONS else f"no kernel for the activation {activation!r}"


def _norms(case: Case) -> str | None:
    return None


def _router(case: Case) -> str | None:
    return None


def _recurrent(case: Case) -> str | None:
    return None


def _attention(case: Case) -> str | None:
    kinds = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.int8")
    if case.weights not in kinds:
        return f"its KV cache is not kept in {case.weights.removeprefix('torch.')}"
    latent = case.option("latent_dim")
    return f"it reads latents of a multiple of 16 numbers, not of {latent}" if latent and latent % 16 else None


_CHECKS: dict[str, Callable[[Case], str | None]] = {
    "attention": _attention,
    "matrices": _matrices,
    "norms": _norms,
    "recurrent": _recurrent,
    "router": _router,
}
