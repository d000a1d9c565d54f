"""Architectures out of tree in the server's engine process: by entry point, by a script that registers, and broken."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest
import torch

from tests.out_of_tree import ARCHITECTURES, EXAMPLE, install, rename_architecture
from tests.server.real_server import RealServer, until
from tests.tiny_models import tiny_reference

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint, and the tokens that transformers generates with it."""
    folder, reference = tmp_path_factory.mktemp("olmoe"), tiny_reference("olmoe")
    reference.save_pretrained(folder)
    tokens = reference.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0, len(PROMPT) :]
    return folder, tokens.tolist()


def complete(url, folder):
    """The greedy tokens that a server gives."""
    request = {"model": str(folder), "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    headers = {"Content-Type": "application/json"}
    sent = urllib.request.Request(f"{url}/v1/completions", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(sent, timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_by_entry_point(checkpoint, tmp_path, architecture):
    folder, expected = checkpoint
    rename_architecture(folder, architecture)
    environment = {"PYTHONPATH": python_path(install(tmp_path))}
    with RealServer(str(folder), "--skip-tokenizer-init", env=environment) as server:
        reply = complete(server.url, folder)
        assert reply["choices"][0]["token_ids"] == expected, reply


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_by_a_script_that_registers(checkpoint, tmp_path, architecture):
    """The script's own folder is where the package lies: the engine's process would not find it by itself."""
    folder, expected = checkpoint
    rename_architecture(folder, architecture)
    install(tmp_path, entry_point=None)
    script = tmp_path / "serve_my_pkg.py"
    script.write_text((EXAMPLE.parent / "serve_my_pkg.py").read_text())
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), "--port", "0"], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        line = next(line for line in process.stdout if line.startswith("ready: "))
        reply = complete(line.split()[1], folder)
        assert reply["choices"][0]["token_ids"] == expected, reply
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_plugin_that_fails_to_import_says_so_itself(checkpoint, tmp_path):
    folder, _ = checkpoint
    rename_architecture(folder, ARCHITECTURES[0])
    install(tmp_path)
    (tmp_path / "my_pkg" / "__init__.py").write_text("import their_missing_dependency\n")
    server = RealServer(str(folder), "--skip-tokenizer-init", env={"PYTHONPATH": python_path(tmp_path)}, wait=False)
    assert server.wait(120) == 1
    until(lambda: "their_missing_dependency" in server.log(), server.log, 10)
    assert "moesaic.plugins entry point 'mine' (my_pkg:register)" in server.log()
    assert "is not supported" not in server.log()


def python_path(folder) -> str:
    """The tests' own, and the folder where the package is installed."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
