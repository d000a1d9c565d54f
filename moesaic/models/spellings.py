"""By which names transformers saves the tensors of each native architecture, where loading takes several. Torch-free.

The file is made by tools/make_spellings.py from tiny models; a test compares.
"""

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "spellings.json"


@cache
def saved_names(architecture: str) -> frozenset[str]:
    """Names without their numbers (`weights.rules.numberless`); empty for an architecture that is not in the file."""
    return frozenset(json.loads(FILE.read_text()).get(architecture, ()))
