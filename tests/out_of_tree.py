"""The examples of docs/add-an-architecture.md as their reader has them: a package outside of the tree."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from moesaic.models import registry
from moesaic.models.registry import ModelRegistry

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_pkg"
ARCHITECTURES = ("MySpecForCausalLM", "MyModelForCausalLM")


def install(folder: Path, entry_point: str | None = "my_pkg:register") -> Path:
    """Copy the package into `folder`, with what an installer would write of its entry point."""
    shutil.copytree(EXAMPLE, folder / "my_pkg", ignore=shutil.ignore_patterns("__pycache__"))
    if entry_point is not None:
        info = folder / "my_pkg-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-pkg\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[moesaic.plugins]\nmine = {entry_point}\n")
    return folder


def rename_architecture(checkpoint: str | Path, architecture: str) -> None:
    """Let a checkpoint's config.json name this architecture."""
    file = Path(checkpoint) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": [architecture]}))


@pytest.fixture
def registrations(monkeypatch):
    """Registrations of a test end with it; those built in do not."""
    ModelRegistry.get_supported_archs()
    for name in ("_targets", "_by_hand"):
        monkeypatch.setattr(ModelRegistry, name, dict(getattr(ModelRegistry, name)))


@pytest.fixture
def my_pkg(tmp_path_factory, monkeypatch, registrations):
    """The package is installed: its entry point is found, and forgotten after the test."""
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    registry._load_builtin_and_plugins.cache_clear()
    yield
    registry._load_builtin_and_plugins.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        del sys.modules[name]
