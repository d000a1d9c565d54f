"""What is known on the way through a proof."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.adapt.proof.build import decoder
from moesaic.adapt.proof.captured import Probe, Prompt
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.results import Stage
from moesaic.adapt.proof.scan import Accounts
from moesaic.core.errors import ConfigError
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec
from moesaic.weights.codecs import stored_as

HF = "hf"  # transformers' own model, as a reference
Tick = Callable[[str], None]


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass
class Proof:
    """What is known on the way."""

    path: str
    architecture: Architecture
    whole: ModelSpec
    spec: ModelSpec
    accounts: Accounts
    arch: str | None
    dtype: str
    quantization: str
    partial: bool
    tick: Tick
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)
    lone: list[Probe] = field(default_factory=list)
    fixed: list[Probe] = field(default_factory=list)
    traced: list[Prompt] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    alone: str = ""  # what stages 1 and 2 are held against
    layers: str = ""  # stage 3
    whole_run: str = ""  # stage 4
    group: int = 1

    @property
    def exactness(self) -> str:
        """The dtype by whose tolerances the engine is judged: products with codes round their inputs to 16 bits."""
        return "bfloat16" if self.quantization == "auto" and stored_as(self.accounts.source) else self.dtype

    def oracle(self) -> OurModel:
        """Our own plain fp32 model."""
        model = decoder(self.path, self.architecture, self.whole, self.spec, self.accounts, "float32", "reference")
        return OurModel(model, self.group)


def shortened(spec: ModelSpec, layers: int | None) -> ModelSpec:
    """The first layers of a model. Raises ConfigError."""
    if layers is None or layers == len(spec.layers):
        return spec
    if not 1 <= layers < len(spec.layers):
        raise ConfigError(f"--layers must be from 1 to {len(spec.layers)}, the model's number of layers, got {layers}")
    return replace(spec, layers=spec.layers[:layers])
