"""`moesaic advise` against servers of several kinds, and the same advice over HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from moesaic.advice.fetch import advise_server
from moesaic.core.errors import ConfigError
from moesaic.core.messages import EngineStats
from moesaic.core.request import SequenceUpdate
from moesaic.entrypoints.cli.advise import command
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs

HOT = """\
moesaic_info{model="m",architecture="A",dtype="bfloat16",device="cpu"} 1.0
moesaic_generation_tokens_total 5000.0
moesaic_requests_finished_total{reason="stop"} 100.0
moesaic_preemptions_total 30.0
"""
EXPERTS = {
    "layers": [
        {
            "layer": 1,
            "num_experts": 2,
            "top_k": 1,
            "part": "ffn",
            "tokens": [9, 991],
            "utilization": 1.0,
            "imbalance": 2.5,
        }
        | {"entropy": 0.9, "dead": []}
    ]
}


class Fake:
    """A server that answers GETs with (status, text) by path, and 404 elsewhere."""

    def __init__(self, pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, text = pages.get(self.path, (404, "no"))
                if self.path.startswith("/v1") and pages.get("key") not in (None, self.headers.get("Authorization")):
                    status, text = 401, "key"
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def test_what_it_says():
    with Fake({"/metrics": (200, HOT), "/v1/moe/experts?window=1h": (200, json.dumps(EXPERTS))}) as fake:
        said = CliRunner().invoke(command, [fake.url])
        told = json.loads(CliRunner().invoke(command, [fake.url + "/v1/", "--json"]).output)
    assert said.exit_code == 0
    text = " ".join(said.output.split())
    assert "m: 0 prompt and 5,000 generated tokens, 100 completions" in text
    assert "✗ layer 1: the busiest expert (1) gets 2.50 times the mean" in text
    assert "✗ 30 preemptions for 100 completions" in text and "--kv-cache-memory" in text
    assert "? no figure of compute efficiency" in text
    assert text.endswith("2 things to look at")
    assert [len(outcome["findings"]) for outcome in told["outcomes"]] == [1, 0, 1, 0]


def test_nothing_served_yet():
    with Fake({"/metrics": (200, HOT.replace("5000.0", "0.0"))}) as fake:
        said = CliRunner().invoke(command, [fake.url])
    assert said.exit_code == 0 and "no tokens generated yet" in said.output


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ({}, "is not a moesaic server: it has no /metrics"),
        ({"/metrics": (200, "go_goroutines 7\n")}, "is not a moesaic server: none of its metrics"),
        ({"/metrics": (200, "<html>")}, "is not Prometheus's text"),
        ({"/metrics": (503, "")}, "answers HTTP 503"),
        ({"/metrics": (200, HOT), "/v1/moe/status": (200, "<html>")}, "answers no JSON"),
        ({"/metrics": (200, HOT), "key": "Bearer right"}, "does not accept this API key"),
    ],
)
def test_one_line_of_what_is_wrong(pages, said):
    with Fake(pages) as fake, pytest.raises(ConfigError) as error:
        advise_server(fake.url, "wrong")
    assert said in str(error.value) and fake.url in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_is_missing_and_one_that_is_right(monkeypatch):
    with Fake({"/metrics": (200, HOT), "key": "Bearer right"}) as fake:
        with pytest.raises(ConfigError, match="give --api-key"):
            advise_server(fake.url)
        assert CliRunner().invoke(command, [fake.url, "--api-key", "right"]).exit_code == 0
        monkeypatch.setenv("MOESAIC_API_KEY", "right")
        assert CliRunner().invoke(command, [fake.url]).exit_code == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://no.such.host.invalid", "http://[", "ftp:x"]
)
def test_nobody_there(url):
    with pytest.raises(ConfigError, match="cannot reach"):
        advise_server(url, timeout=2)


def test_over_http(client, engine):
    engine.answers["experts"] = lambda window, tag: EXPERTS if (window, tag) == ("1h", "") else None
    assert client.get("/v1/moe/advice").json()["has_traffic"] is False
    client.post("/v1/completions", json={"prompt": "x"})
    engine.metrics.observe_step(EngineStats(), [SequenceUpdate("a", 0, [1])], [])
    [finding] = client.get("/v1/moe/advice").json()["outcomes"][0]["findings"]
    assert "busiest expert (1)" in finding["problem"]
    guarded = TestClient(create_app(engine, ServerArgs(api_key=["k"])))
    assert guarded.get("/v1/moe/advice").status_code == 401


def test_a_real_server(server, openai_client):
    for _ in range(20):
        openai_client.completions.create(model="moe-model", prompt="Explain MoE architecture", max_tokens=20)
    report = advise_server(server.url)
    assert report.has_traffic and report.model == "moe-model"
    told = [text for outcome in report.outcomes for text in outcome.unknown]
    assert not [text for text in told if "no figure" in text or "not known" in text]  # all are read by names that exist
    with urlopen(server.url + "/v1/moe/advice") as response:
        told = json.load(response)
    assert [outcome["branch"] for outcome in told["outcomes"]] == [outcome.branch for outcome in report.outcomes]
