"""/v1/moe/routing around a fake engine: profiles listed, switched, used by requests, and every fault told."""

import json
import os

import pytest
from starlette.testclient import TestClient

from moesaic.core.routing_options import RoutingRule
from moesaic.engine.routing_profiles import RoutingProfiles
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs

PATH = "/v1/moe/routing"


@pytest.fixture
def folder(engine, tmp_path):
    """Two profiles that the engine serves."""
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "description": "d", "rules": [{"ban": [1]}]}))
    (tmp_path / "b.toml").write_text('name = "b"\n[[rules]]\ntags = ["t"]\nbias = {2 = 1.5}\n')
    engine.profiles = engine._frontend.profiles = RoutingProfiles([tmp_path])
    engine.profiles.fit(engine.info.moe)
    return tmp_path


def test_a_server_without_profiles(client):
    layers = [{"layer": layer, "num_experts": 8, "top_k": 2} for layer in (0, 2)]
    assert client.get(PATH).json() == {
        "model": "fake",
        "layers": layers,
        "fixed": None,
        "functions": [],
        "active": None,
        "profiles": [],
        "refused": [],
    }


def test_listed_and_switched(client, engine, folder):
    before = client.get(PATH).json()
    assert before["active"] is None
    a, b = before["profiles"]
    assert a == {
        "name": "a",
        "description": "d",
        "rules": [{"ban": [1]}],
        "tags": [],
        "version": a["version"],
        "file": "a.json",
        "error": None,
    }
    assert b["rules"] == [{"tags": ["t"], "bias": {"2": 1.5}}] and b["tags"] == ["t"] and b["file"] == "b.toml"
    assert client.post(PATH, json={"profile": "a"}).json() == before | {"active": "a"} == client.get(PATH).json()
    client.post("/v1/completions", json={"prompt": "x"})
    assert engine.requests[-1].routing.rules == [RoutingRule(ban=[1])]
    assert engine.requests[-1].routing.version == a["version"]
    assert client.post(PATH, json={"profile": None}).json() == before
    client.post("/v1/completions", json={"prompt": "x"})
    assert engine.requests[-1].routing is None


def test_a_file_written_just_before_counts(client, folder):
    (folder / "c.json").write_text('{"name": "c"}')
    assert client.post(PATH, json={"profile": "c"}).json()["active"] == "c"


def test_broken_while_running(client, folder):
    client.post(PATH, json={"profile": "a"})
    before = client.get(PATH).json()["profiles"][0]
    (folder / "a.json").write_text("{")
    (folder / "new.toml").write_text("nome = 3")
    after = client.get(PATH).json()
    assert "is no JSON" in after["profiles"][0].pop("error") and before.pop("error") is None
    assert after["profiles"][0] == before and after["active"] == "a"
    assert after["refused"][0]["file"] == "new.toml" and "did you mean 'name'" in after["refused"][0]["error"]
    os.unlink(folder / "new.toml")
    assert client.get(PATH).json()["refused"] == []


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"profile": "bb"}, 404, "profile", "unknown routing profile 'bb'"),
        ({}, 400, "profile", "field required"),
        ({"profile": 3}, 400, "profile", "string"),
        ({"profle": "a"}, 400, "profle", "did you mean 'profile'"),
        ([], 400, None, "the body"),
    ],
)
def test_bad_switches(client, folder, body, status, param, message):
    response = client.post(PATH, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param) and message in error["message"]
    assert client.get(PATH).json()["active"] is None


def test_the_api_key_counts(engine):
    client = TestClient(create_app(engine, ServerArgs(api_key=["secret"])))
    for ask in (client.get(PATH), client.post(PATH, json={"profile": None})):
        assert ask.status_code == 401
