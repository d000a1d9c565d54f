"""Every example runs as it stands; the one that serves a folder is run by test_out_of_tree.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SERVES = "serve_my_pkg.py"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != SERVES))
def test_example(server, name):
    environment = os.environ | {"MOESAIC_URL": server.url}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
