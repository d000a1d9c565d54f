"""`routing` in bodies of requests: passed on, told again, refused by name; and what a started server makes of it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from moesaic.core.routing_options import RoutingRule
from tests.server.fake_engine import read_events

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES = {COMPLETIONS: {"prompt": "hello"}, CHAT: {"messages": [{"role": "user", "content": "hello"}]}}
OPTIONS = {"tags": ["finance"], "top_k": 1, "ban": [2], "bias": {"3": 1.5}, "layers": [2]}
TOLD = {"tags": ["finance"], "rules": [{"top_k": 1, "ban": [2], "bias": {"3": 1.5}, "layers": [2]}]}


@pytest.mark.parametrize("url", BODIES)
def test_options_reach_the_engine_and_are_told(client, engine, url):
    reply = client.post(url, json=BODIES[url] | {"routing": OPTIONS}).json()
    assert reply["routing"] == TOLD
    [request] = engine.requests
    assert request.routing.tags == ["finance"]
    assert request.routing.rules == [RoutingRule(top_k=1, ban=[2], bias={3: 1.5}, layers=[2])]
    assert "routing" not in client.post(url, json=BODIES[url]).json()
    assert client.post(url, json=BODIES[url] | {"routing": {"tags": ["x"]}}).json()["routing"] == {"tags": ["x"]}


@pytest.mark.parametrize("url", BODIES)
def test_a_stream_tells_it_once(client, url):
    *chunks, done = read_events(client.post(url, json=BODIES[url] | {"routing": OPTIONS, "stream": True}).text)
    assert done == "[DONE]"
    assert len(chunks) > 2
    assert [chunk.get("routing") for chunk in chunks] == [TOLD] + [None] * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("routing", "param", "words"),
    [
        ({"top_k": 0}, "routing.top_k", "at least 1"),
        ({"top_k": 9}, "routing.top_k", "has 8 experts"),
        ({"top_k": "2"}, "routing.top_k", "whole number"),
        ({"ban": list(range(8))}, "routing.ban", "leaves none"),
        ({"allow": []}, "routing.allow", "leaves none"),
        ({"allow": [8]}, "routing.allow", "names expert 8"),
        ({"bias": [1.0] * 7}, "routing.bias", "has 7 numbers"),
        ({"bias": {"0": 1e999}}, "routing.bias", "finite"),
        ({"bias": {"x": 1}}, "routing.bias", "experts' numbers"),
        ({"temperature": -1}, "routing.temperature", "number from"),
        ({"layers": [1], "top_k": 1}, "routing.layers", "names layer 1"),
        ({"profile": "nowhere"}, "routing.profile", "nowhere"),
        ({"topk": 1}, "routing.topk", "did you mean 'top_k'"),
        ({"tags": [1]}, "routing.tags", "list of texts"),
        ([1], "routing", "object"),
    ],
)
@pytest.mark.parametrize("url", BODIES)
def test_bad_options_are_refused_by_name(client, engine, url, routing, param, words):
    body = json.dumps(BODIES[url] | {"routing": routing}).replace("Infinity", "1e999")
    response = client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert not engine.requests


def test_a_model_without_experts(client, engine):
    engine.info.moe = None
    engine._frontend.profiles.fit(None)
    response = client.post(COMPLETIONS, json=BODIES[COMPLETIONS] | {"routing": {"top_k": 1}})
    assert response.status_code == 400
    assert "this model has none" in response.json()["error"]["message"]


# ---------------------------------------------------------------- a started server


def given(completion):
    choice = completion.choices[0]
    return choice.text, choice.logprobs.token_logprobs


def test_requests_side_by_side_are_what_they_are_alone(openai_client):
    asked = [None, {"tags": ["a"], "top_k": 1}, None, {"tags": ["b"], "ban": [0, 1, 2, 3]}, {"top_k": 5}]
    prompts = ["Question: 12 + 30 =", "Once upon a time", '{"name": "', "A list: ", "hello"]

    def ask(i):
        extra = {"ignore_eos": True, **({"routing": asked[i]} if asked[i] else {})}
        return openai_client.completions.create(
            model="moe-model", prompt=prompts[i], max_tokens=24, temperature=0, logprobs=1, extra_body=extra
        )

    alone = [given(ask(i)) for i in range(len(asked))]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(ask, range(len(asked))))
    assert [given(completion) for completion in together] == alone
    assert together[1].model_extra["routing"] == {"tags": ["a"], "rules": [{"top_k": 1}]}
    assert "routing" not in together[0].model_extra
    plain = openai_client.completions.create(
        model="moe-model", prompt=prompts[3], max_tokens=24, temperature=0, logprobs=1, extra_body={"ignore_eos": True}
    )
    assert given(plain) != alone[3]


def test_chat_with_routing(openai_client):
    messages = [{"role": "user", "content": "What is 7 + 8?"}]
    reply = openai_client.chat.completions.create(
        model="moe-model", messages=messages, max_tokens=8, extra_body={"routing": {"allow": [1, 2], "layers": [0]}}
    )
    assert reply.choices[0].message.content is not None
    assert reply.model_extra["routing"] == {"rules": [{"layers": [0], "allow": [1, 2]}]}
    with pytest.raises(Exception, match="names layer 99") as caught:
        openai_client.chat.completions.create(
            model="moe-model", messages=messages, extra_body={"routing": {"top_k": 1, "layers": [99]}}
        )
    assert caught.value.status_code == 400
