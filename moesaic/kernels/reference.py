"""The oracle: every operation in plain torch, on any device and in any floating dtype, for tests and as last fallback.

Other backends offer the same functions with the same arguments and are compared with these. Sums and softmaxes run in
fp32 whatever the dtype. Nothing here promises the same bits for different batch sizes: torch's products do not.
"""

from moesaic.kernels.reference_attention import (
    paged_attention,
    plan_attention,
    prepare_qkv,
    query_temperature,
    rope_table,
    rotate,
    write_kv,
)
from moesaic.kernels.reference_elementwise import add_bias, add_identity, apply_gate, clamp, mix, softcap
from moesaic.kernels.reference_expert_linear import gather_linear, spread_linear
from moesaic.kernels.reference_indexer import prepare_index, select_positions, selected_attention
from moesaic.kernels.reference_latent import head_linear, prepare_latent
from moesaic.kernels.reference_moe import activated_linear, combine, fused_moe, gated_linear, linear
from moesaic.kernels.reference_norm import (
    add_layer_norm,
    add_rms_norm,
    embed,
    gather_rows,
    layer_norm,
    norm_heads,
    rms_norm,
)
from moesaic.kernels.reference_recurrent import (
    causal_conv,
    gated_delta,
    gated_norm,
    linear_attention,
    selective_scan,
    ssd_scan,
)
from moesaic.kernels.reference_router import (
    route,
    route_changes,
    route_logits,
    route_replace,
    route_scores,
    route_seconds,
)
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
    "combine",
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

NAME = "reference"


def supports(case: Case) -> str | None:
    """Why `case` cannot be served: never, this is the last fallback."""
    return None
