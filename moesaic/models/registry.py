"""Which architectures are known: those of `archs/`, those registered by hand, those that plugins bring. Torch-free.

A target is a spec module (`spec` and `RULES`) or a hand-written model class (`models.class_model`).
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, ClassVar

from moesaic.core.errors import ConfigError, UnsupportedError, blame, nearest, unknown_name
from moesaic.models import archs
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import ModelSpec
from moesaic.weights.rules import AnyRule

PLUGIN_GROUP = "moesaic.plugins"
TARGET = re.compile(r"[\w.]+(:\w+)?")


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        name: what config.json's `architectures` calls it.
        spec: reads a config into what the model computes; None for a hand-written class.
        rules: where the parameters lie in a checkpoint, for what it computes.
        model_class: in vLLM's conventions (`models.class_model`).
    """

    name: str
    spec: Callable[[ConfigReader], ModelSpec] | None
    rules: Callable[[ModelSpec], list[AnyRule]]
    model_class: Any = None


@dataclass(frozen=True)
class Handover:
    """Registrations on their way to another process.

    Attributes:
        targets: architecture -> what to import.
        left_behind: architectures registered as objects that no other process can import.
        paths: where modules are looked for.
    """

    targets: dict[str, str]
    left_behind: list[str]
    paths: list[str]


class ModelRegistry:
    """The known architectures by name. All methods are of the class: there is one registry a process."""

    _targets: ClassVar[dict[str, str | object]] = {}
    _model_types: ClassVar[dict[str, str]] = {}
    _by_hand: ClassVar[dict[str, str | object]] = {}
    _left_behind: ClassVar[set[str]] = set()

    @classmethod
    def register_model(cls, architecture: str, target: str | object) -> None:
        """Make an architecture known, or replace it.

        Args:
            target: a module with `spec(config_reader)` and `RULES`, or its dotted name; or a model class, or
                "module:Class". What is named is imported when first needed, in the engine's process too; of objects,
                only modules and classes in modules are found again there. The rules are a list, or a function of the
                ModelSpec that gives one, where they depend on sizes.

        Raises:
            ConfigError: the name is not one of a module, or of something in it.
        """
        if isinstance(target, str) and not TARGET.fullmatch(target):
            raise ConfigError(f"architecture {architecture!r}: {target!r} is neither a module nor module:Class")
        cls._targets[architecture] = target
        cls._by_hand[architecture] = target

    @classmethod
    def handover(cls) -> Handover:
        """What was registered in this process by hand, for another to know it too."""
        named = {architecture: _name_of(target) for architecture, target in cls._by_hand.items()}
        return Handover(
            {architecture: name for architecture, name in named.items() if name is not None},
            [architecture for architecture, name in named.items() if name is None],
            list(sys.path),
        )

    @classmethod
    def take_over(cls, handover: Handover) -> None:
        """Register what another process has registered; modules are looked for where it looks."""
        sys.path += [path for path in handover.paths if path not in sys.path]
        for architecture, target in handover.targets.items():
            cls.register_model(architecture, target)
        cls._left_behind = set(handover.left_behind)

    @classmethod
    def get_supported_archs(cls) -> list[str]:
        """Names of all known architectures, sorted."""
        _load_builtin_and_plugins()
        return sorted(cls._targets)

    @classmethod
    def of_model_type(cls, model_type: str) -> str | None:
        """The architecture that configs of this `model_type` mean where they name none; None for an unknown one."""
        _load_builtin_and_plugins()
        return cls._model_types.get(model_type)

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
        model_type = config.get("model_type")
        if not names and isinstance(model_type, str) and model_type in cls._model_types:
            names = [cls._model_types[model_type]]
        for name in names:
            if name in cls._targets:
                return _architecture(name, cls._targets[name])
        asked = names[0] if names else config.get("model_type")
        if not isinstance(asked, str):
            raise ConfigError("config.json names no architecture: it has neither architectures nor model_type")
        if asked in cls._left_behind:
            raise UnsupportedError(
                f"architecture {asked!r} was registered as an object that this process cannot import; register it as "
                '"module:Class" or by the name of its module'
            )
        close = nearest(asked, known, count=3)
        those = f"nearest known: {', '.join(close)}" if close else f"`moesaic models` lists the {len(known)} known"
        raise UnsupportedError(
            f"architecture {asked!r} is not supported; {those}. `moesaic inspect` says what "
            "the checkpoint is, `moesaic adapt` drafts a file for --arch; ModelRegistry.register_model can add it"
        )


def architecture_in(path: str) -> Architecture:
    """The architecture that a Python file describes, as a spec module.

    Its name is the file's `ARCHITECTURE`, or else the file's own. The file runs as any module does.

    Raises:
        ConfigError: there is no such file, or it describes none.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"--arch {path}: there is no such file")
    stem = os.path.basename(path).removesuffix(".py")
    name = f"moesaic_arch_{stem}"
    module_spec = spec_from_file_location(name, path, loader=SourceFileLoader(name, path))
    assert module_spec is not None and module_spec.loader is not None
    module = module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as e:
        blame(e, f"{path}, which --arch names")
        raise
    return _architecture(getattr(module, "ARCHITECTURE", stem), module)


def _architecture(name: str, target: str | object) -> Architecture:
    found: Any = _import(name, target) if isinstance(target, str) else target
    if isinstance(found, type):
        return Architecture(name, None, lambda spec: [], found)
    for wanted in ("spec", "RULES"):
        if not hasattr(found, wanted):
            raise ConfigError(f"architecture {name!r} is registered as {target!r}, which has no `{wanted}`")
    given = found.RULES
    return Architecture(name, found.spec, given if callable(given) else lambda spec: list(given))


def _import(name: str, target: str) -> Any:
    """The module, or what a module calls so. A module's error is its own, with the architecture's name added."""
    module_name, _, attribute = target.partition(":")
    try:
        module: Any = import_module(module_name)
    except Exception as e:
        blame(e, f"{module_name}, which is registered for the architecture {name!r}")
        raise
    if not attribute:
        return module
    if not hasattr(module, attribute):
        raise ConfigError(
            f"architecture {name!r} is registered as {target!r}: {unknown_name('name', attribute, vars(module))} in "
            f"{module_name}"
        )
    return getattr(module, attribute)


def _name_of(target: str | object) -> str | None:
    """What another process would import, or None."""
    if isinstance(target, str):
        return target
    if isinstance(target, ModuleType) and target.__name__ in sys.modules:
        return target.__name__
    if isinstance(target, type) and target.__module__ != "__main__" and "." not in target.__qualname__:
        return f"{target.__module__}:{target.__qualname__}"
    return None


@cache
def _load_builtin_and_plugins() -> None:
    """Register the modules of `archs/`, then call each plugin. A plugin's error is its own, with its name added."""
    for info in iter_modules(archs.__path__):
        module = import_module(f"{archs.__name__}.{info.name}")
        for name, model_type in {module.ARCHITECTURE: module.MODEL_TYPE, **getattr(module, "ALSO", {})}.items():
            ModelRegistry._targets.setdefault(name, module)
            ModelRegistry._model_types.setdefault(model_type, name)
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()()
        except Exception as e:
            blame(e, f"the {PLUGIN_GROUP} entry point {plugin.name!r} ({plugin.value})")
            raise
