"""Dataclasses whose constructor names the nearest field when it is given one that does not exist."""

from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from moesaic.core.errors import ConfigError, unknown_name

T = TypeVar("T")


def strict_kwargs(cls: type[T]) -> type[T]:
    """Class decorator, outside `@dataclass`: an unknown keyword raises ConfigError with the nearest name."""
    original = cls.__init__
    known = {f.name for f in fields(cls) if f.init}  # type: ignore[arg-type]

    @wraps(original)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                raise ConfigError(f"{cls.__name__}: {unknown_name('argument', name, known)}")
        original(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls
