"""The made-up niche checkpoints of examples/niche, for tests."""

import subprocess
import sys
from pathlib import Path

KINDS = ("feed-forward", "attention")
MAKER = Path(__file__).parent.parent / "examples" / "niche" / "make.py"


def make_niche(kind: str, folder: Path) -> tuple[str, str]:
    """Write one; returns its folder and the file of its recorded logits."""
    subprocess.run([sys.executable, str(MAKER), kind, str(folder)], check=True, capture_output=True)
    return str(folder), str(folder.with_name(f"{folder.name}.reference.safetensors"))
