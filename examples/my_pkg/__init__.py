"""An architecture out of tree, twice: as a spec and as a class. docs/add-an-architecture.md walks through both."""

from moesaic import ModelRegistry


def register() -> None:
    """What the entry point of the group `moesaic.plugins` names. Nothing is imported until a checkpoint asks for it."""
    ModelRegistry.register_model("MySpecForCausalLM", "my_pkg.spec")
    ModelRegistry.register_model("MyModelForCausalLM", "my_pkg.model:MyModelForCausalLM")
