"""Routes of tokens over HTTP: whole and in chunks, of completions and of chat, and what is refused."""

import json
from urllib.request import Request, urlopen

import pytest

from moesaic.core.routing import LayerShape, MoeShape
from tests.server.fake_engine import read_events

MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]
LAYERS, TOP_K = 5, 2  # of the embedded model


def post(server, path, **body):
    """The JSON of a reply, or the events of a stream."""
    request = Request(
        f"{server.url}/v1{path}", json.dumps({"temperature": 0, **body}).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=120) as answer:
        text = answer.read().decode()
    return read_events(text)[:-1] if body.get("stream") else json.loads(text)


def check(routes, tokens):
    """Routes of so many tokens, each of two experts with weights that add up to 1."""
    assert routes["layers"] == list(range(LAYERS)) and routes["start"] == 0
    assert len(routes["ids"]) == len(routes["weights"]) == tokens
    for ids, weights in zip(routes["ids"], routes["weights"], strict=True):
        assert len(ids) == len(weights) == LAYERS
        assert all(len(set(of_layer)) == TOP_K and 0 <= min(of_layer) <= max(of_layer) < 16 for of_layer in ids)
        assert all(sum(of_layer) == pytest.approx(1, abs=1e-5) for of_layer in weights)


def test_a_chat_whole_and_streamed(server):
    body = {"messages": MESSAGES, "max_tokens": 8, "return_routed_experts": True}
    whole = post(server, "/chat/completions", **body)
    usage = whole["usage"]
    check(whole["choices"][0]["routed_experts"], usage["prompt_tokens"] + usage["completion_tokens"] - 1)
    events = post(server, "/chat/completions", stream=True, return_token_ids=True, **body)
    ids, weights = [], []
    for event in events:
        routes = event["choices"][0].get("routed_experts")
        if routes is None:
            assert not event["choices"][0].get("token_ids")
            continue
        assert routes["start"] == len(ids)
        assert len(routes["ids"]) == (len(event["choices"][0]["token_ids"]) if ids else usage["prompt_tokens"])
        ids, weights = ids + routes["ids"], weights + routes["weights"]
    assert {"ids": ids, "weights": weights}.items() <= whole["choices"][0]["routed_experts"].items()


def test_completions_of_several_prompts(server):
    prompts = ["12+30=", "The router is"]
    body = {"prompt": prompts, "max_tokens": 5, "n": 2, "ignore_eos": True, "temperature": 1, "seed": 3}
    whole = post(server, "/completions", return_routed_experts=True, return_token_ids=True, **body)
    for choice in whole["choices"]:
        prompt = whole["choices"][choice["index"] // 2 * 2]["prompt_token_ids"]
        check(choice["routed_experts"], len(prompt) + 5 - 1)
    alike = [whole["choices"][i]["routed_experts"]["ids"][: len(prompt)] for i in (2, 3)]
    assert alike[0] == alike[1]
    streamed = {choice["index"]: [] for choice in whole["choices"]}
    for event in post(server, "/completions", return_routed_experts=True, stream=True, **body):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice.get("routed_experts", {"ids": []})["ids"]
    assert streamed == {choice["index"]: choice["routed_experts"]["ids"] for choice in whole["choices"]}


def test_nobody_gets_what_he_did_not_ask_for(server):
    for path, body in (("/chat/completions", {"messages": MESSAGES}), ("/completions", {"prompt": "1+1="})):
        whole = post(server, path, max_tokens=2, **body)
        assert "routed_experts" not in whole["choices"][0]


def refused(client, **body):
    answer = client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "return_routed_experts"
    return answer.json()["error"]["message"]


def test_refusals(client, engine):
    engine.info.moe = None
    assert "no experts" in refused(client, return_routed_experts=True)
    assert "return_routed_experts" in refused(client, return_routed_experts="yes")
    engine.info.moe = MoeShape([LayerShape(i, 512, 500) for i in range(500)])
    message = refused(client, prompt=list(range(100)), return_routed_experts=True)
    assert "25000000 routes" in message and "4000000" in message
    assert engine.requests == []
