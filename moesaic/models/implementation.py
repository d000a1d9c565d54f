"""Whose code computes a checkpoint: a spec of ours, transformers' own class, or the checkpoint's. Torch-free."""

from collections.abc import Mapping
from typing import Any

from moesaic.core.errors import UnsupportedError, nearest
from moesaic.core.log import get_logger
from moesaic.models.hf_backend.allowed import ALLOWED, REFUSED, Allowed
from moesaic.models.registry import Architecture, ModelRegistry, architecture_in

log = get_logger(__name__)

REMOTE_KINDS = ("AutoModelForCausalLM", "AutoModel")  # keys of auto_map that name a decoder, best first


def choose_implementation(
    config: dict[str, Any],
    path: str,
    wanted: str = "auto",
    trust_remote_code: bool = False,
    arch: str | None = None,
) -> Architecture | Allowed:
    """The spec of ours, or the entry of the backend's allow-list, that serves this config.

    Args:
        wanted: "native", "transformers", or "auto" for the first of the two that knows the architecture.
        trust_remote_code: code in the checkpoint's folder may serve what neither knows.
        arch: file with the architecture, whatever the config names.

    Raises:
        ConfigError: the config names no architecture, or what was asked for does not serve it.
    """
    if arch is not None:
        if wanted == "transformers":
            raise UnsupportedError(f"--arch {arch} and --model-impl transformers exclude each other")
        return architecture_in(arch)
    native = ModelRegistry.get_supported_archs()
    for name in set(_names(config)) & REFUSED.keys() - native:
        raise UnsupportedError(f"architecture {name!r} is not served: {REFUSED[name]}")
    entry = next((ALLOWED[name] for name in _names(config) if name in ALLOWED), None)
    if wanted != "transformers":
        try:
            return ModelRegistry.resolve(config)
        except UnsupportedError as unknown:
            if entry is None and wanted == "auto":
                return _remote(config, path, trust_remote_code, unknown)
            if wanted == "native":
                hint = "; --model-impl auto serves it through transformers" if entry is not None else ""
                raise UnsupportedError(f"{unknown}{hint}") from None
    if entry is None:
        asked = " or ".join(_names(config)) or str(config.get("model_type"))
        if asked in native:
            raise UnsupportedError(
                f"architecture {asked!r} is not served through transformers: no parity test backs it; --model-impl "
                "auto serves it natively"
            )
        close = nearest(asked, ALLOWED, count=3) or sorted(ALLOWED)
        raise UnsupportedError(
            f"architecture {asked!r} is not served through transformers: no parity test backs it; nearest that is: "
            f"{', '.join(close)}"
        )
    return entry


def _names(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures") or []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _remote(config: Mapping[str, Any], path: str, trusted: bool, unknown: UnsupportedError) -> Allowed:
    """An entry for the code that the checkpoint brings; the refusal of it, or `unknown`, where it may not run."""
    mapped = config.get("auto_map")
    target = next((mapped[kind] for kind in REMOTE_KINDS if kind in mapped), None) if isinstance(mapped, dict) else None
    asked = (_names(config) or [str(config.get("model_type"))])[0]
    if not isinstance(target, str):
        close = nearest(asked, ALLOWED, count=3)
        hint = f"; through transformers, the nearest is {', '.join(close)}" if close else ""
        raise UnsupportedError(f"{unknown}{hint}") from None
    file, _, name = target.rpartition(".")
    if not trusted:
        raise UnsupportedError(
            f"architecture {asked!r} is not supported, and {path} brings code of its own: class {name} in "
            f"{file.replace('.', '/')}.py, which is not run without --trust-remote-code"
        )
    log.warning(
        "%s is computed by the checkpoint's own code, class %s of %s.py: no parity test backs it", asked, name, file
    )
    return Allowed(asked, "request", experts="transformers", remote=target)
