"""What a drafted file describes: the same as `--arch` makes of it."""

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from moesaic.models.load import spec_of
from moesaic.models.registry import Architecture
from moesaic.models.spec import ModelSpec


def describe(source: str, config: Mapping[str, Any], where: str) -> tuple[Architecture, ModelSpec]:
    """The architecture and the spec of a config. Raises ConfigError where the draft refuses the config."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "draft.py")
        with open(file, "w", encoding="utf-8") as f:
            f.write(source)
        architecture, spec = spec_of(dict(config), where, file)
    assert isinstance(spec, ModelSpec)
    return architecture, spec
