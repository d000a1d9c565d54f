"""What the parity tests measured, a line of JSON a case, for `make parity` (tools/make_models.py reads it)."""

import json
import os
import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from moesaic.models.spec import AttentionSpec, ModelSpec

LOG = "MOESAIC_PARITY_LOG"


def record(architecture: str, case: str, difference: float, spec: Any) -> None:
    """Append a case to the file that MOESAIC_PARITY_LOG names, if it names one.

    Args:
        difference: the largest relative difference of a logit, in all ways in which the case was computed.
        spec: of the model that was compared, a ModelSpec or what the backend has in its place.
    """
    path = os.environ.get(LOG)
    if path is None:
        return
    facts = native_facts(spec) if isinstance(spec, ModelSpec) else {}
    by = "native" if isinstance(spec, ModelSpec) else "transformers"
    line = {"architecture": architecture, "by": by, "case": case, "difference": difference, **facts}
    with open(path, "a") as log:
        log.write(json.dumps(line) + "\n")


def native_facts(spec: ModelSpec) -> dict[str, list[str]]:
    """Words for what mixes tokens, for routers, and for every option of the spec that is in use."""
    mixers, routers, options = set(), set(), set()
    for layer in spec.layers:
        if layer.attention is not None:
            mixers.add(mixer_kind(layer.attention))
        if layer.moe is not None:
            routers.add(layer.moe.router.scoring)
        options |= options_of(layer)
    options |= {word for word in options_of(spec) if not word.startswith("layers")}
    return {"attention": sorted(mixers), "router": sorted(routers), "options": sorted(options)}


def mixer_kind(mixer: Any) -> str:
    """What mixes tokens, in words: `grouped-query attention`, `latent attention`, `mamba 2`, ..."""
    if not isinstance(mixer, AttentionSpec):
        return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", type(mixer).__name__.removesuffix("Spec")).lower()
    if mixer.num_kv_heads == mixer.num_heads:
        return "multi-head attention"
    return "multi-query attention" if mixer.num_kv_heads == 1 else "grouped-query attention"


def options_of(spec: Any, prefix: str = "") -> set[str]:
    """Dotted names of a spec's fields that differ from their defaults; with the value where it is a word."""
    found = set()
    for field in fields(spec):
        value, name = getattr(spec, field.name), prefix + field.name
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if is_dataclass(value):
            inner = options_of(value, f"{name}.")
            found |= inner if default is MISSING or inner or value == default else {name}
        elif isinstance(value, str) and value != default:
            found.add(f"{name} {value}")
        elif default is not MISSING and value != default:
            found.add(name)
    return found
