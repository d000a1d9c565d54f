"""What the server says of itself, and what is around every response."""

import pytest
from starlette.testclient import TestClient

from moesaic import __version__
from moesaic.core.errors import ConfigError
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs
from tests.server.fake_engine import MAX_MODEL_LEN


def test_models(client):
    reply = client.get("/v1/models").json()
    assert reply["object"] == "list" and [card["id"] for card in reply["data"]] == ["fake", "fake/alias"]
    assert reply["data"][0]["max_model_len"] == MAX_MODEL_LEN
    assert client.get("/v1/models/fake/alias").json() == reply["data"][1]


def test_health_version_metrics(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": __version__}
    client.post("/v1/completions", json={"prompt": "x"})
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for gauge in ("kv_blocks_used", "state_slots_used", "state_checkpoints", "state_slots"):
        assert f"moesaic_{gauge} 0.0" in metrics.text


def test_schema_names_the_bodies(client):
    paths = client.get("/openapi.json").json()["paths"]
    schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "temperature" in schema["properties"]


def test_request_id(client):
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/health", headers={"X-Request-Id": "x" * 500}).headers["x-request-id"]) == 32
    assert client.get("/health").headers["x-request-id"] != client.get("/health").headers["x-request-id"]


def test_equal_request_ids_do_not_collide(client):
    for _ in range(2):
        response = client.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "same"})
        assert response.status_code == 200


def test_one_line_a_finished_request(client, log):
    client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}, headers={"X-Request-Id": "me"})
    client.get("/health")
    [line] = [r.getMessage() for r in log.records if r.name == "moesaic.server"]
    assert line.startswith("me POST /v1/completions: 200 in ")
    assert line.endswith("5 prompt tokens (4 cached), 3 generated")


def test_no_line_when_not_wanted(engine, log):
    client = TestClient(create_app(engine, ServerArgs(disable_log_requests=True)))
    client.post("/v1/completions", json={"prompt": "hello"})
    assert not [r for r in log.records if r.name == "moesaic.server"]


def test_cors(engine):
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = TestClient(create_app(engine, ServerArgs()))
    assert "access-control-allow-origin" not in closed.options("/v1/completions", headers=asking).headers
    opened = TestClient(create_app(engine, ServerArgs(allowed_origins=["https://a.example"], api_key=["k"])))
    answer = opened.options("/v1/completions", headers=asking)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://a.example"


def test_root_path(engine):
    client = TestClient(create_app(engine, ServerArgs(api_key=["k"])), root_path="/llm")
    for prefix in ("", "/llm"):  # with and without a proxy that strips the prefix
        assert client.get(prefix + "/health").status_code == 200
        assert client.get(prefix + "/v1/models").status_code == 401


def test_page_loads_only_from_here(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<style" not in page.text and "http://" not in page.text and "https://" not in page.text
    for asset in ("app.js", "style.css"):
        assert f'"dashboard/{asset}"' in page.text
        assert client.get(f"/dashboard/{asset}").status_code == 200
    assert client.get("/dashboard/../app.py").status_code == 404


def test_bad_server_arguments():
    with pytest.raises(ConfigError, match="'port'"):
        ServerArgs(prot=1)
    with pytest.raises(ConfigError, match="empty"):
        ServerArgs(api_key=["one", " "])
