"""A server's life as a process: how it starts, what stops it, what it leaves behind (nothing)."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
from urllib.request import Request, urlopen

import openai
import pytest

from tests.server.real_server import RealServer, alive, until


def fails_to_start(*args: str, **kwargs) -> str:
    """The one line that a server says which does not start."""
    server = RealServer(*args, wait=False, **kwargs)
    try:
        assert server.wait() == 1, server.log()
    finally:
        server.process.kill()
    assert "Traceback" not in server.log(), server.log()
    last = server.err[-1]
    assert last.startswith("error: ")
    return last


def post(url: str, body: dict, **headers: str):
    data = json.dumps(body).encode()
    return urlopen(Request(url, data, {"Content-Type": "application/json"} | headers))


def test_port_in_use_is_said_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = RealServer("--port", port, wait=False)
        assert server.wait() == 1
        reason = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert server.err == [f"error: {reason}; choose another --port or --host\n"]


def test_bad_address():
    assert "256.0.0.1" in fails_to_start("--host", "256.0.0.1")
    assert "70000" in fails_to_start("--port", "70000")


def test_missing_model_is_said_in_the_engines_words(tmp_path):
    assert str(tmp_path) in fails_to_start("--model", str(tmp_path))


def test_sigterm_while_loading():
    server = RealServer(wait=False)
    until(lambda: server.err != [] or server.process.poll() is not None, server.log)
    engine = server.engine_pid
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.log()
    assert "Traceback" not in server.log()
    until(lambda: not alive(engine))


def test_sigterm_while_streaming():
    """A short request ends in its grace, a long one with an error that says why; then nothing is left."""
    with RealServer("--grace-seconds", "2") as server:
        engine = server.engine_pid
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        asked = {"model": "moe-model", "prompt": "x", "stream": True, "extra_body": {"ignore_eos": True}}
        short = client.completions.create(**asked, max_tokens=20)
        long = client.completions.create(**asked, max_tokens=2000, n=48)
        next(long)
        server.signal(signal.SIGTERM)
        assert list(short)[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in long:
                pass
        assert server.wait() == 0, server.log()
        assert "Traceback" not in server.log()
        until(lambda: not alive(engine))


def test_engine_killed():
    """503 for a while, then exit status 1; a request under way ends with an error."""
    with RealServer("--api-key", "k", env={"MOESAIC_API_KEY": "e"}) as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urlopen(server.url + "/v1/models")
        for key in ("k", "e"):
            assert urlopen(Request(server.url + "/v1/models", headers={"Authorization": f"Bearer {key}"})).status == 200
        body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        stream = post(server.url + "/v1/completions", body, Authorization="Bearer k")
        stream.readline()
        os.kill(server.engine_pid, signal.SIGKILL)
        assert b'"code":"engine_dead"' in stream.read()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urlopen(server.url + "/health")
        assert server.wait() == 1
        assert "Traceback" not in server.log(), server.log()


def test_api_server_module_and_unix_socket(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left_behind:  # by a server that was killed
        left_behind.bind(path)
    with RealServer("--uds", path, module="moesaic.entrypoints.api_server") as server:
        assert server.url == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in connection.recv(4096)
        assert "another server listens" in fails_to_start("--uds", path)
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert not (tmp_path / "socket").exists()


def test_nothing_of_the_server_imports_torch():
    code = (
        "import sys, moesaic.entrypoints.server.run, moesaic.entrypoints.server.app;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
