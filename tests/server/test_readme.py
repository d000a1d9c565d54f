"""What the README shows is so: its Python runs, its requests are served."""

import json
import re
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
REQUESTS = re.findall(r"curl http://127\.0\.0\.1:8000(\S+) .*? -d '(.*?)'", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number, capsys, monkeypatch):
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "warning")
    exec(compile(PYTHON[number], f"README.md, block {number + 1}", "exec"), {})
    assert capsys.readouterr().out.strip() == "85"  # of 47 + 38


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_requests(number, server):
    path, body = REQUESTS[number]
    request = Request(server.url + path, body.encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        reply = json.load(response)
    assert reply["choices"][0]["message"]["content"]
    asked = json.loads(body).get("routing")
    assert (reply.get("routing") or {}).get("tags") == (asked or {}).get("tags")


def test_there_is_something_to_try():
    assert len(PYTHON) == 2 and len(REQUESTS) == 2
