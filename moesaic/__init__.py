"""moesaic: an inference engine for Mixture-of-Experts language models. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesaic.core.threads import settle_waiting

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moesaic.core.outputs import CompletionOutput, RequestOutput
    from moesaic.core.sampling_params import SamplingParams
    from moesaic.engine.args import EngineArgs
    from moesaic.engine.async_engine import AsyncEngine
    from moesaic.engine.llm import LLM
    from moesaic.engine.llm_engine import LLMEngine
    from moesaic.experts.function_types import RoutingDecision, RoutingInput
    from moesaic.models.registry import ModelRegistry

_WHERE = {
    "LLM": "moesaic.engine.llm",
    "LLMEngine": "moesaic.engine.llm_engine",
    "AsyncEngine": "moesaic.engine.async_engine",
    "EngineArgs": "moesaic.engine.args",
    "SamplingParams": "moesaic.core.sampling_params",
    "RequestOutput": "moesaic.core.outputs",
    "CompletionOutput": "moesaic.core.outputs",
    "ModelRegistry": "moesaic.models.registry",
    "RoutingDecision": "moesaic.experts.function_types",
    "RoutingInput": "moesaic.experts.function_types",
}
__all__ = [
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "EngineArgs",
    "LLMEngine",
    "ModelRegistry",
    "RequestOutput",
    "RoutingDecision",
    "RoutingInput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "ops":  # the module; nothing that an engine needs
        return import_module("moesaic.ops")
    if name not in _WHERE:
        raise AttributeError(f"module 'moesaic' has no attribute {name!r}")
    settle_waiting()
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
