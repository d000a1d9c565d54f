"""Which architectures are known: those of `archs/`, those registered by hand, those that plugins bring. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, ClassVar

from moesaic.core.errors import ConfigError, UnsupportedError, nearest
from moesaic.models import archs
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import ModelSpec
from moesaic.weights.rules import AnyRule

PLUGIN_GROUP = "moesaic.plugins"


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        name: what config.json's `architectures` calls it.
        spec: reads a config into what the model computes.
        rules: where the parameters lie in a checkpoint, for what it computes.
    """

    name: str
    spec: Callable[[ConfigReader], ModelSpec]
    rules: Callable[[ModelSpec], list[AnyRule]]


class ModelRegistry:
    """The known architectures by name. All methods are of the class: there is one registry a process."""

    _targets: ClassVar[dict[str, str | object]] = {}
    _model_types: ClassVar[dict[str, str]] = {}

    @classmethod
    def register_model(cls, architecture: str, target: str | object) -> None:
        """Make an architecture known, or replace it.

        Args:
            target: a module with `spec(config_reader)` and `RULES`, or its dotted name, imported when first needed.
                The rules are a list, or a function of the ModelSpec that gives one, where they depend on sizes.
        """
        cls._targets[architecture] = target

    @classmethod
    def get_supported_archs(cls) -> list[str]:
        """Names of all known architectures, sorted."""
        _load_builtin_and_plugins()
        return sorted(cls._targets)

    @classmethod
    def resolve(cls, config: dict[str, Any]) -> Architecture:
        """The architecture that a config.json names, by `architectures` or else by `model_type`.

        Raises:
            ConfigError: the config names none.
            UnsupportedError: it is not known; the message names the nearest ones.
        """
        known = cls.get_supported_archs()
        names = config.get("architectures") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"config.json: architectures must be a list of names, got {names!r}")
        if not names and config.get("model_type") in cls._model_types:
            names = [cls._model_types[config["model_type"]]]
        for name in names:
            if name in cls._targets:
                return _architecture(name, cls._targets[name])
        asked = names[0] if names else config.get("model_type")
        if not isinstance(asked, str):
            raise ConfigError("config.json names no architecture: it has neither architectures nor model_type")
        close = nearest(asked, known, count=3) or known
        raise UnsupportedError(
            f"architecture {asked!r} is not supported; nearest known: {', '.join(close)}. "
            f"ModelRegistry.register_model can add it"
        )


def _architecture(name: str, target: str | object) -> Architecture:
    module: Any = import_module(target) if isinstance(target, str) else target
    for wanted in ("spec", "RULES"):
        if not hasattr(module, wanted):
            raise ConfigError(f"architecture {name!r} is registered as {target!r}, which has no `{wanted}`")
    given = module.RULES
    return Architecture(name, module.spec, given if callable(given) else lambda spec: list(given))


@cache
def _load_builtin_and_plugins() -> None:
    """Register the modules of `archs/`, then call each plugin. A plugin's error is its own, with its name added."""
    for info in iter_modules(archs.__path__):
        module = import_module(f"{archs.__name__}.{info.name}")
        for name, model_type in {module.ARCHITECTURE: module.MODEL_TYPE, **getattr(module, "ALSO", {})}.items():
            ModelRegistry._targets.setdefault(name, module)
            ModelRegistry._model_types[model_type] = name
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()()
        except Exception as e:
            e.add_note(f"raised by the {PLUGIN_GROUP} entry point {plugin.name!r} ({plugin.value})")
            raise
