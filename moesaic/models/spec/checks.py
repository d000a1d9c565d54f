"""What all specs share."""

from typing import Any

from moesaic.core.errors import ConfigError


def require_positive(spec: Any, *fields: str) -> None:
    """Raise ConfigError unless these fields are at least 1: sizes from a config nobody has looked at."""
    for field in fields:
        if getattr(spec, field) < 1:
            raise ConfigError(f"{field} must be at least 1, the config gives {getattr(spec, field)}")
