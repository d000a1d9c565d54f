"""The made-up niche checkpoints of examples/niche, for tests."""

import sys
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

KINDS = ("feed-forward", "attention")
MAKER = Path(__file__).parent.parent / "examples" / "niche" / "make.py"


def make_niche(kind: str, folder: Path) -> tuple[str, str]:
    """Write one; returns its folder and the file of its recorded logits."""
    with ExitStack() as after:
        sys.path.insert(0, str(MAKER.parent))  # as where it is run as a script
        after.callback(sys.path.remove, str(MAKER.parent))
        spec = spec_from_file_location("niche_maker", MAKER)
        assert spec is not None and spec.loader is not None
        maker = module_from_spec(spec)
        spec.loader.exec_module(maker)
    maker.make(kind, folder)
    return str(folder), str(folder.with_name(f"{folder.name}.reference.safetensors"))
