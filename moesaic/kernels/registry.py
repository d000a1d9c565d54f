"""Which backend computes a family of operations: the first that can, or the one asked for, or an error that says why.

Operations are chosen by family, because those of one family share data in a backend's own form: projections and
experts share packed weights, the operations of attention share the cache. One choice serves a whole model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.core.log import get_logger

log = get_logger(__name__)

# Best first. Each is a module with `supports(case) -> reason | None` and a function for each operation.
BACKENDS = {"cpu": "moesaic.kernels.cpu.backend", "reference": "moesaic.kernels.reference"}
FAMILIES = {
    "matrices": (
        *("embed", "linear", "gated_linear", "activated_linear", "fused_moe"),
        *("spread_linear", "gather_linear", "head_linear"),
    ),
    "attention": (
        *("rope_table", "rotate", "query_temperature", "prepare_qkv", "prepare_latent"),
        *("plan_attention", "paged_attention", "prepare_index", "select_positions", "selected_attention"),
    ),
    "norms": (
        *("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "gather_rows"),
        *("mix", "apply_gate", "softcap", "clamp", "norm_heads", "add_bias", "add_identity"),
    ),
    "recurrent": ("causal_conv", "gated_delta", "gated_norm", "linear_attention", "selective_scan", "ssd_scan"),
    "router": ("route", "route_scores", "route_logits", "route_changes", "route_replace", "route_seconds"),
}
FAMILY_OF = {op: family for family, ops in FAMILIES.items() for op in ops}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked of a backend: one family of operations, and all that its answer may depend on.

    Attributes:
        family: of FAMILIES.
        device: type of the device, such as "cpu".
        activations, weights: dtypes, such as "torch.bfloat16"; of attention, `weights` is the cache's.
        options: what the family needs beside these, by name: `activation`, `head_dim`, `block_size`, ...
    """

    family: str
    device: str
    activations: str
    weights: str
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str) -> Any:
        """One of the options; None where the case does not say."""
        return dict(self.options).get(name)


def choose(cases: Iterable[Case], wanted: str = "auto") -> str:
    """The backend that serves all these cases of one family. Refusals are logged, each once.

    Raises:
        UnsupportedError: the backend asked for does not exist or cannot serve a case; the message has its reason.
    """
    if wanted != "auto" and wanted not in BACKENDS:
        raise UnsupportedError(unknown_name("kernel backend", wanted, BACKENDS))
    cases = list(cases)
    reasons = []
    for name in BACKENDS if wanted == "auto" else [wanted]:
        refusals = [(case.family, reason) for case in cases if (reason := module(name).supports(case)) is not None]
        if not refusals:
            return name
        family, reason = refusals[0]
        reasons.append(f"{name}: {reason}")
        if wanted == "auto":
            _say_refusal(name, family, reason)
    raise UnsupportedError(f"no backend for {cases[0].family}: {'; '.join(reasons)}")


def module(backend: str) -> Any:
    """The module of a backend."""
    return import_module(BACKENDS[backend])


def kernel(op: str, backend: str) -> Callable[..., Any]:
    """The function that computes `op` in a backend."""
    function: Callable[..., Any] = getattr(module(backend), op)
    return function


@cache
def _say_refusal(backend: str, family: str, reason: str) -> None:
    """Log why a backend does not serve, the first time that this reason is given."""
    log.info("%s is not served by the %s backend: %s", family, backend, reason)
