"""Rules for checkpoints that other programs name alike for all architectures. Torch-free.

A source says by which names its tensors go (`Source.naming`). "hf" are those that each architecture's own rules know.
"""

from collections.abc import Callable

from moesaic.models.gguf.naming import gguf_rules
from moesaic.models.megatron_naming import megatron_rules
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.weights.rules import AnyRule, rename

# naming -> the rules of a model with this spec, of an architecture with this name
NAMINGS: dict[str, Callable[[ModelSpec, str], list[AnyRule]]] = {
    "gguf": gguf_rules,
    "megatron": megatron_rules,
    "packed": lambda spec, name: [rename("{any}", "{any}")],  # a packed checkpoint has canonical names
}


def rules_of(architecture: Architecture, spec: ModelSpec, naming: str) -> list[AnyRule]:
    """Where the parameters of `spec` lie in a checkpoint whose tensors go by these names."""
    return architecture.rules(spec) if naming == "hf" else NAMINGS[naming](spec, architecture.name)
