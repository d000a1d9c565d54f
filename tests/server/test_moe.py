"""/v1/moe/experts, /v1/moe/status and the metrics of experts: shapes and refusals, then a started server."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from moesaic.core.errors import RequestError
from moesaic.core.messages import EngineStats, LayerSummary, MoeSummary
from moesaic.core.request import SequenceUpdate
from moesaic.engine.vllm_metrics import NAMES
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs

DOCS = Path(__file__).parents[2] / "docs" / "statistics.md"


def summary(time, tokens, **fields):
    figures = (0.5, 4.0, 0.6) if tokens else (0.0, None, None)
    return MoeSummary(time, 60.0, [LayerSummary(3, "ffn", *figures, 8, 0.75, tokens)], **fields)


def samples(text):
    """(name, labels) -> value of an exposition."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_model_without_experts(client):
    reply = client.get("/v1/moe/experts")
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "no_experts"


def test_bad_questions(client, engine):
    def refuse(window, tag):
        raise RequestError(f"unknown window {window!r}", "window")

    engine.answers["experts"] = refuse
    reply = client.get("/v1/moe/experts?window=1d")
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "window"
    reply = client.get("/v1/moe/experts", params={"tag": "x" * 129})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "tag"


def test_status_keeps_secrets(engine):
    client = TestClient(create_app(engine, ServerArgs(api_key=["key-of-mine"])))
    assert client.get("/v1/moe/status").status_code == client.get("/v1/moe/experts").status_code == 401
    reply = client.get("/v1/moe/status", headers={"Authorization": "Bearer key-of-mine"})
    assert reply.status_code == 200 and "key-of-mine" not in reply.text
    assert reply.json()["flags"]["moe_block_size"] is None and reply.json()["flags"]["port"] == 8000


def test_metrics_follow_summaries(engine, client):
    engine.metrics.observe_moe(summary(1.0, 40, kv_fragmentation=0.25))
    engine.metrics.observe_moe(summary(3.0, 100, kv_fragmentation=0.5, recomputed_tokens_total=7))
    engine.metrics.observe_moe(summary(2.0, 60, kv_fragmentation=0.25))  # late: it is known better
    found, layer = samples(client.get("/metrics").text), (("layer", "3"), ("part", "ffn"))
    assert found["moesaic_moe_expert_tokens_total", layer] == 100
    assert found["moesaic_moe_expert_utilization", layer] == 0.5
    assert found["moesaic_moe_token_imbalance", layer] == 4.0
    assert found["moesaic_moe_memory_fragmentation", (("kind", "kv"),)] == 0.5
    assert found["moesaic_moe_recomputed_tokens_total", ()] == 7
    idle = MoeSummary(4.0, 60.0, [LayerSummary(3, "ffn", 0.0, None, None, 0, None, 100)], recomputed_tokens_total=7)
    engine.metrics.observe_moe(idle)
    found = samples(client.get("/metrics").text)
    assert found["moesaic_moe_expert_tokens_total", layer] == 100
    assert ("moesaic_moe_token_imbalance", layer) not in found, "of nothing nothing is said"


def test_no_label_is_an_expert_or_a_request(engine, client):
    engine.metrics.observe_moe(summary(1.0, 40, kv_fragmentation=0.25))
    engine.metrics.arrive("r")
    engine.metrics.forget("r")
    labels = {label for (_, labels) in samples(client.get("/metrics").text) for label, _ in labels}
    assert labels == {"layer", "part", "kind", "reason", "le", "model", "architecture", "dtype", "device"}


def test_every_metric_is_documented(engine):
    engine.metrics.observe_moe(summary(1.0, 40, kv_fragmentation=0.25, expert_fragmentation=0.1))
    engine.metrics.arrive("r")
    engine.metrics.forget("r")
    exported = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in samples(engine.metrics.render()[0].decode())}
    text = DOCS.read_text()
    assert exported == set(re.findall(r"moesaic_\w+", text))
    assert set(re.findall(r"vllm(?::|_moe_)\w+", text)) <= {name for name, _ in NAMES.values()}


def test_queue_prefill_and_decode_times(engine):
    metrics = engine.metrics
    metrics.arrive("r")
    metrics.observe_step(EngineStats(steps_total=1, step_seconds_total=0.5), [], [])
    metrics.observe_step(
        EngineStats(steps_total=2, step_seconds_total=0.75, routing_seconds_total=0.01),
        [SequenceUpdate("r", 0, [5], queue_seconds=0.125)],
        [],
    )
    found = samples(metrics.render()[0].decode())
    assert found["moesaic_request_queue_time_seconds_sum", ()] == 0.125
    assert found["moesaic_moe_routing_latency_seconds_count", ()] == 1
    assert found["moesaic_moe_routing_latency_seconds_sum", ()] == 0.01
    assert metrics.recent["step"].values() == [0.5, 0.25]


def test_vllm_names(engine):
    plain = TestClient(create_app(engine, ServerArgs())).get("/metrics").text
    assert "vllm" not in plain
    client = TestClient(create_app(engine, ServerArgs(metrics_aliases="vllm")))
    engine.metrics.observe_moe(summary(1.0, 40, kv_fragmentation=0.25))
    engine.metrics.observe_step(EngineStats(num_waiting=3, preemptions_total=2, routing_seconds_total=0.25), [], [])
    found = samples(client.get("/metrics").text)
    ours = (("engine", "0"), ("model_name", "fake"))
    assert found["vllm:num_requests_waiting", ours] == 3 and found["vllm:num_preemptions_total", ours] == 2
    assert found["vllm_moe_token_imbalance", (ours[0], ("layer", "3"), ours[1], ("part", "ffn"))] == 4.0
    assert found["vllm_moe_routing_latency_ms_sum", ours] == 250.0
    assert found["vllm_moe_routing_latency_ms_bucket", (ours[0], ("le", "250.0"), ours[1])] == 1
    assert found["vllm_moe_routing_latency_ms_bucket", (ours[0], ("le", "100.0"), ours[1])] == 0
    families = {re.sub("_(bucket|sum|count|total)$", "", name) for name, _ in found if name.startswith("vllm")}
    assert families == {name for name, _ in NAMES.values()} - {"vllm:request_success"}, "each, of what has happened"


def fetch(url):
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.read().decode()


def test_a_started_server(server, openai_client):
    asked = {"model": "moe-model", "max_tokens": 12, "temperature": 0, "extra_body": {"routing": {"tags": ["sums"]}}}
    before = json.loads(fetch(f"{server.url}/v1/moe/experts?tag=sums"))
    usage = openai_client.completions.create(prompt="Two and two are", **asked).usage
    found = json.loads(fetch(f"{server.url}/v1/moe/experts?tag=sums&window=start"))
    computed = usage.prompt_tokens + usage.completion_tokens - 1  # the last token is given, and not computed
    assert found["model"] == "moe-model" and "sums" in found["tags"]
    for now, then in zip(found["layers"], before["layers"], strict=True):
        assert sum(now["tokens"]) - sum(then["tokens"]) == computed * now["top_k"]
    status = json.loads(fetch(f"{server.url}/v1/moe/status"))
    assert status["latency"]["time_to_first_token"]["count"] >= 1 and status["latency"]["step"]["p50"] > 0
    assert status["kv"]["bytes"] > 0 and status["experts"]["bytes"] > 0
    metrics = samples(fetch(f"{server.url}/metrics"))
    everything = json.loads(fetch(f"{server.url}/v1/moe/experts"))
    for layer in everything["layers"]:
        labels = ("layer", str(layer["layer"])), ("part", "ffn")
        assert metrics["moesaic_moe_expert_tokens_total", labels] == sum(layer["tokens"])
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(f"{server.url}/v1/moe/experts?window=1d")
    assert refused.value.code == 400 and json.loads(refused.value.read())["error"]["param"] == "window"
