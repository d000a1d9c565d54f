"""Where routing functions come from that a flag names: `module:function`, or the name of an installed one."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from moesaic.core.errors import ConfigError, blame, unknown_name

GROUP = "moesaic.routing"
FLAG = "--moe-routing-func"


def load_function(name: str) -> Callable[..., Any]:
    """The function behind `module:function` (the current folder is searched too, last), or behind the name of an entry
    point in the group `moesaic.routing`.

    Raises:
        ConfigError: there is none. An error inside the module is its own, with the flag named in a note.
    """
    found = _of_module(name) if ":" in name else _of_entry_point(name)
    if not callable(found):
        raise ConfigError(f"{FLAG} {name}: that is no function, but a value of type {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _of_module(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{FLAG} {name}: give it as module:function")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):  # one that the module wants
            blame(error, f"{module_name}, which {FLAG} names")
            raise
        raise ConfigError(
            f"{FLAG} {name}: there is no module {error.name!r}, neither installed nor in {here}"
        ) from None
    except Exception as error:
        blame(error, f"{module_name}, which {FLAG} names")
        raise
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = unknown_name("name", part, vars(found) if hasattr(found, "__dict__") else ())
            raise ConfigError(f"{FLAG} {name}: {hint} in {module_name}")
        found = getattr(found, part)
    return found


def _of_entry_point(name: str) -> Any:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        installed = ", ".join(sorted(known)) or "none"
        hint = unknown_name("routing function", name, known)
        raise ConfigError(
            f"{FLAG}: {hint}; installed ones ({GROUP} entry points): {installed}; module:function names one in a module"
        )
    try:
        return known[name].load()
    except Exception as error:
        blame(error, f"the {GROUP} entry point {name!r} ({known[name].value})")
        raise
