"""Every command of docs/adapt-a-checkpoint.md, run as a new user would, one after the other, in an empty folder."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server.real_server import SMALL, RealServer

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "adapt-a-checkpoint.md").read_text()
STEPS = [
    (lines[0], lines[1:])
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for lines in (step.splitlines() for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
]
QUOTES = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
SECONDS = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run; the examples are there, as in a clone."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command, folder):
    """What a command prints."""
    words = shlex.split(command)
    words[:1] = {"python": [sys.executable], "moesaic": [sys.executable, "-m", "moesaic"]}.get(words[0], words[:1])
    if "generate" in words:
        words += SMALL
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_whole_way(folder, capsys, monkeypatch):
    """In one test, for each command needs what the ones before it made."""
    monkeypatch.chdir(folder)
    server, spent, port = None, [], free_port()
    try:
        for step, expected in STEPS:
            command = step.replace("8321", str(port))
            start = time.monotonic()
            if command.startswith("moesaic serve"):
                server = RealServer(*shlex.split(command)[2:])
                printed = "".join(server.out)
            else:
                printed = run(command, folder)
            spent.append((time.monotonic() - start, command))
            flat = " ".join(printed.split())
            for line in expected:
                assert " ".join(line.split()) in flat, f"{command}: not printed: {line}\n{printed}"
    finally:
        if server is not None:
            server.stop()
    with capsys.disabled():
        print("\n" + "\n".join(f"{seconds:6.1f} s  {command}" for seconds, command in spent))


@pytest.mark.parametrize("number", range(len(QUOTES)))
def test_what_is_quoted_of_the_draft_is_in_it(folder, number):
    file = folder / "my_arch.py"
    if not file.exists():
        pytest.skip("the commands did not run")
    assert QUOTES[number] in file.read_text()
