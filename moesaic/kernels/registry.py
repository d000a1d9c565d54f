"""Which backend computes an operation: the first that can, or the one that was asked for, or an error that says why."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.core.log import get_logger

log = get_logger(__name__)

# Best first. Each is a module with `supports(case) -> reason | None` and a function for each operation.
BACKENDS = {"reference": "moesaic.kernels.reference"}


@dataclass(frozen=True)
class Case:
    """What is asked of a backend.

    Attributes:
        op: name of the operation, a function of `kernels.reference`.
        device: type of the device, such as "cpu".
        dtype: of the activations, such as "torch.bfloat16".
    """

    op: str
    device: str
    dtype: str


@cache
def kernel(case: Case, backend: str = "auto") -> Callable[..., Any]:
    """The function that computes `case`. The choice is logged, once.

    Raises:
        UnsupportedError: the backend asked for does not exist or cannot serve the case; the message has its reason.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UnsupportedError(unknown_name("kernel backend", backend, BACKENDS))
    reasons = []
    for name in BACKENDS if backend == "auto" else [backend]:
        module = import_module(BACKENDS[name])
        reason = module.supports(case)
        if reason is None:
            _announce(name, case.device, case.dtype)
            function: Callable[..., Any] = getattr(module, case.op)
            return function
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError(f"no kernel for {case}: {'; '.join(reasons)}")


@cache
def _announce(backend: str, device: str, dtype: str) -> None:
    """Log a choice the first time it is made."""
    log.info("kernels on %s in %s: %s", device, dtype.removeprefix("torch."), backend)
