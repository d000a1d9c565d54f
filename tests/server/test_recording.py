"""Recording routes over HTTP: one at a time, into one folder."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from moesaic.core.errors import ConfigError
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.server.run import run_server
from moesaic.entrypoints.server.settings import ServerArgs
from moesaic.experts.profile_file import read_routes
from tests.server.real_server import RealServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("profiles") / "made" / "here"


@pytest.fixture(scope="module")
def recording(folder):
    with RealServer("--moe-profile-dir", str(folder)) as running:
        yield running


def call(server, path, body=None, status=200):
    """The JSON of an answer; POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=120) as answer:
            code, text = answer.status, answer.read()
    except HTTPError as error:
        code, text = error.code, error.read()
    assert code == status, text
    return json.loads(text)


def test_a_recording(recording, folder):
    assert call(recording, "/v1/moe/profile") == {"recording": False}
    begun = call(recording, "/v1/moe/profile/start", {"path": "mine", "tags": ["sums"], "stream_tokens": 7})
    assert begun | {"seconds": 0} == {
        "recording": True, "path": "mine.safetensors", "only_tags": ["sums"], "seconds": 0, "tokens": 0,
        "stream_tokens": 7,
    }  # fmt: skip
    again = call(recording, "/v1/moe/profile/start", {}, 400)["error"]
    assert "recorded already, for mine.safetensors" in again["message"] and str(folder) not in again["message"]
    tokens = 0
    for routing in ({"tags": ["sums"]}, None, {"tags": ["sums", "more"]}):
        usage = call(
            recording, "/v1/completions", {"prompt": "12+30=", "max_tokens": 3, "ignore_eos": True, "routing": routing}
        )["usage"]
        tokens += (usage["total_tokens"] - 1 - usage["prompt_tokens_details"]["cached_tokens"]) * (routing is not None)
    assert call(recording, "/v1/moe/profile")["tokens"] == tokens
    done = call(recording, "/v1/moe/profile/stop", {})
    assert done["tokens"] == tokens and not done["recording"]
    read = read_routes(str(folder / "mine.safetensors"))
    assert read.tokens == tokens and sorted(read.tags) == ["more", "sums"] and len(read.stream) == 7
    assert done["bytes"] == (folder / "mine.safetensors").stat().st_size
    assert "no routes" in call(recording, "/v1/moe/profile/stop", {}, 400)["error"]["message"]
    there = call(recording, "/v1/moe/profile/start", {"path": "mine"}, 400)["error"]
    assert there["param"] == "path" and "mine.safetensors is there already" in there["message"]
    assert str(folder) not in there["message"]


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/b", "..", ".hidden", "", "x\u0000", "x" * 101, "caf\u00e9", "a\\b", "x\n"]
)
def test_names_that_are_more_than_names(recording, folder, path):
    before = list(folder.parent.rglob("*"))
    assert call(recording, "/v1/moe/profile/start", {"path": path}, 400)["error"]["param"] == "path"
    assert list(folder.parent.rglob("*")) == before
    assert call(recording, "/v1/moe/profile") == {"recording": False}


@pytest.mark.parametrize(
    ("body", "param"),
    [({"tags": "a"}, "tags"), ({"tags": [""]}, "routing.tags"), ({"stream_tokens": -1}, "stream_tokens"),
     ({"stream_tokens": 1 << 60}, "stream_tokens"), ({"file": "x"}, "file"), ({"path": 5}, "path")],
)  # fmt: skip
def test_bad_bodies(recording, body, param):
    assert call(recording, "/v1/moe/profile/start", body, 400)["error"]["param"] == param


def test_a_server_without_a_folder_records_nothing(client):
    for path in ("/v1/moe/profile/start", "/v1/moe/profile/stop"):
        answer = client.post(path, json={})
        assert answer.status_code == 403 and "--moe-profile-dir" in answer.json()["error"]["message"]


def test_a_folder_that_cannot_be_is_told_before_the_model_loads(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--moe-profile-dir: cannot make"):
        run_server(EngineArgs(), ServerArgs(moe_profile_dir=str(tmp_path / "file" / "folder")))
