"""Bad requests: each gets one clear error in OpenAI's shape, and nothing else suffers."""

import json

import pytest
from starlette.testclient import TestClient

from moesaic.entrypoints.server import body as body_module
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs
from tests.server.fake_engine import MAX_MODEL_LEN, read_events

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"] and "Traceback" not in error["message"]
    return error


def refused(client, url, body, param, *words):
    error = error_of(client.post(url, json=body), 400)
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error
    return error


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"not json",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"prompt": ' + b"9" * 9999,
    ],
)
def test_malformed_json(client, content):
    response = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert "the body is not valid JSON" in error_of(response, 400)["message"]


@pytest.mark.parametrize("content", [b"[]", b"null", b"5", b'"text"'])
def test_no_object(client, content):
    response = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert "the body" in error_of(response, 400)["message"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_undeclared_json(client, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = client.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=headers)
    assert "application/json" in error_of(response, 415)["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "16"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", "hot"),
        ("stop", 5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": "x"}),
        ("logit_bias", [1]),
        ("stream", "yes"),
        ("stop_token_ids", 5),
        ("echo", 1),
        ("logprobs", True),
        ("model", 5),
        ("priority", "high"),
        ("stream_options", True),
    ],
)
def test_wrong_types(client, field, value):
    error = error_of(client.post(COMPLETIONS, json={"prompt": "x", field: value}), 400)
    assert error["param"].partition("[")[0] == field and field in error["message"]


@pytest.mark.parametrize("prompt", [5, None, {}, [], [[]], [1.5], ["a", 1], [[1], "a", None], [True], ""])
def test_wrong_prompts(client, prompt):
    refused(client, COMPLETIONS, {"prompt": prompt}, "prompt", "prompt")


def test_missing_fields(client):
    refused(client, COMPLETIONS, {}, "prompt", "required")
    refused(client, CHAT, {}, "messages", "required")


def test_several_faults_in_one_message(client):
    refused(client, COMPLETIONS, {"prompt": "x", "n": "2", "seed": "3"}, "n", "n:", "seed:")


def test_unknown_field_names_the_nearest(client):
    refused(client, COMPLETIONS, {"prompt": "x", "tempratur": 1}, "tempratur", "'tempratur'", "'temperature'")
    refused(client, CHAT, {"messages": HELLO, "max_token": 1}, "max_token", "'max_tokens'")
    refused(
        client,
        COMPLETIONS,
        {"prompt": "x", "stream": True, "stream_options": {"usage": True}},
        "usage",
        "stream option",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", 1e999),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("n", 0),
        ("n", 1000),
        ("max_tokens", 0),
        ("min_tokens", 999),
        ("logprobs", 1000),
        ("prompt_logprobs", -1),
        ("seed", 2**70),
        ("stop", [""]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [257]),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"9999": 1}),
    ],
)
def test_out_of_range(client, field, value):
    content = json.dumps({"prompt": "x", field: value})
    response = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert error_of(response, 400)["param"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"),
        ("best_of", 3),
        ("guided_json", {}),
        ("use_beam_search", True),
        ("bad_words", ["x"]),
        ("truncate_prompt_tokens", 5),
    ],
)
def test_unsupported_in_completions(client, field, value):
    refused(client, COMPLETIONS, {"prompt": "x", field: value}, field, field, "not supported", "leave it out")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("chat_template", "x"),
    ],
)
def test_unsupported_in_chat(client, field, value):
    refused(client, CHAT, {"messages": HELLO, field: value}, field, field, "not supported")


@pytest.mark.parametrize(
    ("message", "param", "word"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content", "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content.text", "required"),
        ({"role": "user", "content": ["x"]}, "messages[1].content", "object"),
        ({"role": "user", "content": None}, "messages[1]", "needs content"),
        ({"role": "user"}, "messages[1]", "needs content"),
        ({"role": "user", "content": 5}, "messages[1].content", "string"),
        ({"role": "robot", "content": "x"}, "messages[1].role", "'user'"),
        ({"content": "x"}, "messages[1].role", "required"),
        ({"role": "user", "contnet": "x"}, "messages[1]", "'content'"),
        ("text", "messages[1]", "object"),
    ],
)
def test_wrong_messages(client, message, param, word):
    error = refused(client, CHAT, {"messages": [*HELLO, message]}, param, word)
    assert "messages[1]" in error["message"]


def test_wrong_chats(client):
    refused(client, CHAT, {"messages": []}, "messages")
    refused(client, CHAT, {"messages": "hello"}, "messages")
    refused(client, CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "logprobs")
    refused(client, CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 999}, "top_logprobs")
    refused(client, CHAT, {"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens")
    refused(client, CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs")
    refused(client, CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options")
    refused(client, CHAT, {"messages": HELLO, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs")


def test_too_long_names_the_numbers(client):
    prompt = "x" * (MAX_MODEL_LEN + 7)
    for stream in (False, True):  # a stream that cannot begin has an HTTP status too
        refused(client, COMPLETIONS, {"prompt": prompt, "stream": stream}, "prompt", "207", "200")
        messages = [{"role": "user", "content": prompt}]
        refused(client, CHAT, {"messages": messages, "stream": stream}, "messages", "200")
    refused(client, COMPLETIONS, {"prompt": "x", "max_tokens": 500}, "max_tokens", "501", "200", "199")
    refused(client, CHAT, {"messages": HELLO, "max_completion_tokens": 500}, "max_completion_tokens", "200")


def test_longer_than_a_step_where_prompts_are_computed_whole(client, engine):
    engine.info.most_prompt_tokens = 8
    words = "9 tokens", "at most 8", "--max-num-batched-tokens"
    error = refused(client, COMPLETIONS, {"model": "fake", "prompt": "x" * 9}, "prompt", *words)
    assert error["code"] == "context_length_exceeded"
    assert client.post(COMPLETIONS, json={"model": "fake", "prompt": "x" * 8}).status_code == 200


def test_token_ids_out_of_range(client):
    refused(client, COMPLETIONS, {"prompt": [1, 999]}, "prompt", "999", "256")
    refused(client, COMPLETIONS, {"prompt": [-1]}, "prompt", "-1")


def test_one_bad_prompt_of_two_leaves_nothing_behind(client, engine):
    refused(client, COMPLETIONS, {"prompt": [[1], [999]]}, "prompt")
    assert not engine.running


def test_unknown_model(client):
    for url, body in ((COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": HELLO})):
        error = error_of(client.post(url, json=body | {"model": "gpt-9"}), 404)
        assert error["param"] == "model" and error["code"] == "model_not_found"
        assert "'gpt-9'" in error["message"] and "'fake'" in error["message"]
    assert error_of(client.get("/v1/models/gpt-9"), 404)["code"] == "model_not_found"


def test_unknown_route_and_wrong_method(client):
    error_of(client.get("/v1/nothing"), 404)
    error_of(client.get("/docs"), 404)
    response = client.get(COMPLETIONS)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


def test_too_large(client, monkeypatch):
    monkeypatch.setattr(body_module, "MAX_BODY_BYTES", 1000)
    announced = client.post(COMPLETIONS, json={"prompt": "x" * 1000})
    assert error_of(announced, 413)["code"] == "body_too_large"
    chunked = client.post(
        COMPLETIONS, content=(b"x" * 300 for _ in range(5)), headers={"content-type": "application/json"}
    )
    assert error_of(chunked, 413)["code"] == "body_too_large"


def test_dead_engine(client, engine):
    engine.dead = True
    for stream in (False, True):
        error_of(client.post(COMPLETIONS, json={"prompt": "x", "stream": stream}), 503)
    assert error_of(client.get("/health"), 503)["code"] == "engine_dead"


def test_internal_error_keeps_its_secrets(client, engine, caplog):
    engine.error = RuntimeError("secret path")
    for stream in (False, True):
        assert (
            "secret" not in error_of(client.post(COMPLETIONS, json={"prompt": "x", "stream": stream}), 500)["message"]
        )


def test_engine_gives_up_a_request(client, engine):
    engine.fails_after = 2
    assert "NaN" in error_of(client.post(COMPLETIONS, json={"prompt": "x"}), 500)["message"]


@pytest.mark.parametrize(("url", "body"), [(COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": HELLO})])
def test_engine_gives_up_mid_stream(client, engine, url, body):
    engine.fails_after = 2
    response = client.post(url, json=body | {"stream": True})
    assert response.status_code == 200
    events = read_events(response.text)
    assert events[0]["choices"] and "NaN" in events[-1]["error"]["message"]
    assert events[-1]["error"]["type"] == "server_error"


def test_api_key(engine):
    client = TestClient(create_app(engine, ServerArgs(api_key=["one", "zwölf"])))

    def status(url="/v1/models", **headers):
        return client.get(url, headers=headers).status_code

    refusal = client.get("/v1/models")
    assert error_of(refusal, 401)["code"] == "invalid_api_key" and refusal.headers["www-authenticate"] == "Bearer"
    assert status(Authorization="Bearer two") == 401
    assert status(Authorization="one") == 401
    assert status(Authorization="Basic one") == 401
    assert status(Authorization="Bearer one") == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer zwölf".encode()}).status_code == 200
    assert client.post(COMPLETIONS, content=b"{").status_code == 401  # before the body is looked at
    assert status("/v1/nothing") == 401
    for url in ("/", "/health", "/version", "/metrics", "/dashboard/app.js"):
        assert status(url) == 200, url


def test_api_key_of_the_environment(engine, monkeypatch):
    monkeypatch.setenv("MOESAIC_API_KEY", "three")
    client = TestClient(create_app(engine, ServerArgs()))
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer three"}).status_code == 200
