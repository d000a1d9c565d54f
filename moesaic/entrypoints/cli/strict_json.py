"""Reports as JSON that every parser reads."""

import json
from math import isfinite
from typing import Any


def strict_json(value: Any, indent: int | None = None) -> str:
    """Plain data as JSON, which knows no NaN and no infinity: such numbers become the strings nan, inf and -inf."""
    return json.dumps(_plain(value), indent=indent, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
