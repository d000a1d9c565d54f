"""The dashboard before servers that the tests make up: large models, none of experts, and hostile texts."""

import json

import numpy as np
import pytest

from moesaic.experts import load
from tests.browser.conftest import say

JSON = "application/json"


def reply(layers: int, experts: int, tag: str = "finance") -> str:
    """What /v1/moe/experts says of a large model, with the first expert of each layer dead."""
    tokens = [0, *range(1, experts)]
    one = {"num_experts": experts, "top_k": 8, "tokens": tokens, "utilization": 1 - 1 / experts}
    one |= {"imbalance": 2.0, "entropy": 0.9, "dead": [0]}
    described = [one | {"layer": layer} for layer in range(3, 3 + layers)]
    return json.dumps({"model": "m", "window": "1m", "seconds": 60, "tags": [tag], "layers": described, "totals": {}})


def test_a_large_model_is_drawn_whole(ready):
    ready.fake("/v1/moe/experts", lambda _: (200, JSON, reply(94, 256)))
    ready.choose("#heat-view", "1m")
    ready.wait("document.querySelectorAll('#layer-rows tr').length === 94")
    shown = ready.run("document.querySelector('#heat').getBoundingClientRect().height")
    assert 94 * 4 < shown < 900
    assert "dead" in ready.text("#layer-summary")


def test_cells_are_told_to_the_pointer_and_the_keyboard(ready):
    ready.fake("/v1/moe/experts", lambda _: (200, JSON, reply(4, 8)))
    ready.choose("#heat-view", "1m")
    ready.wait("document.querySelectorAll('#layer-rows tr').length === 4")
    ready.run("document.querySelector('#heat').focus()")
    ready.press("ArrowRight")
    assert ready.text("#heat-cell") == "layer 3, expert 0: no tokens"
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        ready.press(key)
    assert ready.text("#heat-cell") == "layer 4, expert 2: 2 tokens, 7.1 % of the layer's, 0.57× the mean"
    ready.press("Enter")
    assert ready.run("document.querySelector('#chat-layer').selectedOptions[0].label") == "layer 4"


def test_a_model_without_experts_has_a_chat_all_the_same(ready):
    missing = json.dumps({"error": {"message": "this model has no experts", "code": 404}})
    ready.fake("/v1/moe/experts", lambda _: (404, JSON, missing))
    ready.choose("#heat-view", "1h")
    ready.wait("document.querySelector('#experts').hidden")
    say(ready, "What is 1 + 1?")
    assert ready.text(".message.assistant")


def test_a_model_whose_routes_cannot_be_told_has_a_chat_all_the_same(ready):
    said = {"error": {"message": "no routes here", "param": "return_routed_experts"}}
    chunk = {"choices": [{"index": 0, "delta": {"content": "85"}, "token_ids": [7]}]}

    def answer(body):
        if "return_routed_experts" in body:
            return 400, JSON, json.dumps(said)
        return 200, "text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"

    ready.wait("document.querySelector('#chat-layer').options.length")
    ready.fake("/v1/chat/completions", answer)
    say(ready, "What is 47 + 38?")
    assert ready.text(".message.assistant") == "85" and not ready.run("document.querySelector('.message.error')")
    assert ready.run("document.querySelector('#colour').disabled")


def test_figures_of_the_page_are_those_of_the_server(ready):
    draw = np.random.default_rng(3)
    for counts in (draw.poisson(2.0, 64), draw.zipf(1.5, 16), np.zeros(8, np.int64), np.array([5])):
        found = ready.run(f"import('./dashboard/history.js').then((m) => m.figuresOf({counts.tolist()}))")
        for name in ("utilization", "imbalance", "entropy"):
            assert found[name] == pytest.approx(getattr(load, name)(counts)), name
        assert found["dead"] == load.dead(counts)


def test_a_server_in_trouble_is_told_and_its_return_too(ready):
    state = "document.querySelector('#state').textContent"
    dead = json.dumps({"error": {"message": "the engine is dead", "code": 503}})
    ready.fake("/v1/moe/status", lambda _: (503, JSON, dead))
    ready.wait(f"{state} === 'engine stopped'")
    ready.fake("/v1/moe/status", lambda _: (200, JSON, "no JSON at all"))
    ready.wait(f"{state} === 'no answer'")
    ready.send("Fetch.disable")
    ready.wait(f"{state} === 'ready'")


def test_texts_of_the_server_stay_texts(ready):
    evil = "<img src=x onerror=\"document.title='owned'\">"
    ready.fake("/v1/moe/experts", lambda _: (200, JSON, reply(2, 4, evil)))
    ready.fake("/v1/chat/completions", lambda _: (400, JSON, json.dumps({"error": {"message": evil}})))
    ready.choose("#heat-view", "1h")
    ready.wait("document.querySelectorAll('#heat-tag option').length === 2")
    say(ready, "hello")
    assert ready.text(".message.error") == evil
    assert ready.run("document.title") == "moesaic" and ready.run("document.querySelectorAll('main img').length") == 0
