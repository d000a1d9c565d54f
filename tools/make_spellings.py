"""Writes moesaic/models/spellings.json: by which names transformers saves the tensors of each native architecture.

Run it after adding an architecture: `python tools/make_spellings.py [FAMILY]...` (a few minutes; tiny random models).
"""

import json
import sys
import tempfile
from pathlib import Path

from moesaic.models import spellings
from moesaic.models.registry import ModelRegistry
from moesaic.weights.rules import numberless
from moesaic.weights.sources import open_source
from tests.tiny_models import FAMILIES, MORE_FAMILIES, make_tiny


def names_of(family: str) -> tuple[str, list[str]]:
    """The architecture that a tiny model of a family is saved as, and its tensors' names without numbers."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny(family, folder)
        architecture = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
        return architecture, sorted({numberless(name) for name in open_source(folder).tensors})


def main() -> None:
    file = Path(spellings.FILE)
    known = json.loads(file.read_text()) if file.exists() else {}
    native = set(ModelRegistry.get_supported_archs())
    for family in sys.argv[1:] or [*FAMILIES, *MORE_FAMILIES]:
        architecture, names = names_of(family)
        if architecture in native:
            known[architecture] = names
    file.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
