"""A page of docs, done from its top to its end in an empty folder: commands, programs and files."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from tests.server.real_server import SMALL, RealServer

ROOT = Path(__file__).parent.parent.parent
PORT = "8321"
WITH_MODEL = ("generate", "profile")
SECONDS = 180
HERE = {"COLUMNS": "100", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def blocks_of(page):
    """(kind, text) of a page's blocks, in order."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```(console|python|text|toml)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run(words, folder):
    done = subprocess.run(words, cwd=folder, env=os.environ | HERE, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def steps_of(block):
    """(command, lines that it prints among others)."""
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *lines = step.splitlines()
        yield command, lines


class Reader:
    """Does what the page says."""

    def __init__(self, folder):
        self.folder, self.port, self.server, self.printed = folder, free_port(), None, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.server is not None:
            self.server.stop()

    def do(self, kind, block):
        block = block.replace(PORT, self.port)
        if name := re.match(r"# (\S+\.(toml|py))\n", block):
            (self.folder / name[1]).write_text(block)
        elif kind == "python":
            self.printed = run([sys.executable, "-c", block], self.folder)
            assert self.printed
        elif kind == "text":
            self.expect(block.splitlines())
        else:
            for command, lines in steps_of(block):
                self.command(command)
                self.expect(lines)

    def command(self, command):
        words = shlex.split(command)
        if words[:2] == ["moesaic", "serve"]:
            if self.server is not None:
                self.server.stop()
            self.server = RealServer(*words[2:], cwd=self.folder, env=HERE)
            self.printed = "".join(self.server.out)
            return
        if words[0] == "moesaic":
            small = SMALL if words[1] in WITH_MODEL else ()
            words = [sys.executable, "-m", *words, *small]
        self.printed = run(words, self.folder)

    def expect(self, lines):
        flat = " ".join(self.printed.split())
        for line in lines:
            assert " ".join(line.split()) in flat, f"not printed: {line}\n{self.printed}"
