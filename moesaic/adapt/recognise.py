"""What a checkpoint is: the architecture that its config names, and who computes it here. Torch-free."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from moesaic.adapt.names import Group
from moesaic.adapt.parts import guessed_part
from moesaic.adapt.survey import Survey
from moesaic.core.config import DType
from moesaic.core.errors import MoesaicError, UnsupportedError
from moesaic.models.hf_backend.allowed import ALLOWED, REFUSED
from moesaic.models.implementation import REMOTE_KINDS
from moesaic.models.load import spec_of
from moesaic.models.plausible import beyond_any_model
from moesaic.models.registry import Architecture, ModelRegistry, architecture_in
from moesaic.models.spec import ModelSpec


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        architecture: as the config (or `--arch`) names it; "" where nothing does.
        served: "native", "transformers", "its own code" (with --trust-remote-code), or "" for by nobody.
        why: it is served by nobody, or not as it stands.
    """

    architecture: str = ""
    model_type: str = ""
    served: str = ""
    why: str = ""


def identify(config: Mapping[str, Any] | None, arch: str | None = None) -> tuple[Identity, Architecture | None]:
    """What the config names, and the architecture of ours that computes it. Raises ConfigError for a bad `arch`."""
    values = dict(config or {})
    model_type = values.get("model_type") if isinstance(values.get("model_type"), str) else ""
    if arch is not None:
        architecture = architecture_in(arch)
        return Identity(architecture.name, model_type or "", "native"), architecture
    given = values.get("architectures")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    name = names[0] if names else ""
    try:
        architecture = ModelRegistry.resolve(values)
        return Identity(architecture.name, model_type or "", "native"), architecture
    except MoesaicError as e:
        return _elsewhere(name, names, model_type or "", values, str(e)), None


def _elsewhere(name: str, names: Iterable[str], model_type: str, config: Mapping[str, Any], unknown: str) -> Identity:
    for asked in names:
        if asked in ALLOWED:
            return Identity(asked, model_type, "transformers")
        if asked in REFUSED:
            return Identity(asked, model_type, "", REFUSED[asked])
    mapped = config.get("auto_map")
    if isinstance(mapped, Mapping) and any(isinstance(mapped.get(kind), str) for kind in REMOTE_KINDS):
        why = "the folder's code may compute it, with --trust-remote-code; nothing here was tested with that"
        return Identity(name, model_type, "its own code", why)
    if not name and not model_type:
        return Identity("", "", "", "the config names no architecture" if config else "there is no config to read")
    return Identity(name, model_type, "", unknown.partition(";")[0].partition(". Model")[0])


def read_spec_of(survey: Survey, architecture: Architecture | None, arch: str | None) -> tuple[ModelSpec | None, str]:
    """What it computes, if that is described by a spec; and what is wrong with its config."""
    if survey.config is None or architecture is None or architecture.spec is None:
        return None, ""
    if beyond := beyond_any_model(survey.config):
        return None, beyond
    try:
        _, spec = spec_of(dict(survey.config), os.path.join(survey.path, "config.json"), arch)
    except (MoesaicError, UnsupportedError) as e:
        return None, str(e)
    return (spec, "") if isinstance(spec, ModelSpec) else (None, "")


def dtype_of(survey: Survey) -> DType:
    """The dtype that weights are served in where nobody says another."""
    config = survey.config or {}
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) in get_args(DType):
                return cast(DType, part[key])
    return "float32"


def counted(groups: Iterable[Group], top_k: int | None) -> tuple[int, int | None, int]:
    """Of names alone: parameters, those that one token meets (None where nothing says how many experts it goes to),
    and experts of a layer."""
    total = in_experts = num_experts = 0
    for group in groups:
        total += group.numel
        if group.experts or (guessed_part(group.pattern) == "experts" and len(group.shape) == 3):
            in_experts += group.numel
            num_experts = max(num_experts, len(group.experts) or group.shape[0])
    if not num_experts:
        return total, total, 0
    if top_k is None:
        return total, None, num_experts
    return total, total - in_experts + in_experts * min(top_k, num_experts) // num_experts, num_experts
