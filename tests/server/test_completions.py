"""POST /v1/completions, in every form of prompt, whole and streamed."""

import pytest

from tests.server.fake_engine import EOS, read_events

URL = "/v1/completions"


def complete(client, **body):
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, **body):
    response = client.post(URL, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = read_events(response.text)
    assert done == "[DONE]"
    return chunks


def test_whole(client, engine):
    reply = complete(client, model="fake", prompt="hello", max_tokens=100)
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-") and reply["model"] == "fake"
    assert isinstance(reply["created"], int) and reply["system_fingerprint"]
    [choice] = reply["choices"]
    assert choice == {
        "index": 0,
        "text": "The answer 0 is 42.",
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert reply["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 20,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_default_max_tokens_is_16(client):
    reply = complete(client, prompt="hello")
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 16


def test_every_form_of_prompt(client, engine, tokenizer):
    ids = tokenizer.encode("hi")
    for prompt, expected in (
        (["hi"], [ids]),
        (ids, [ids]),
        ([ids, ids[:1]], [ids, ids[:1]]),
        (["hi", "h"], [ids, ids[:1]]),
    ):
        engine.requests.clear()
        reply = complete(client, prompt=prompt, max_tokens=2)
        assert [r.prompt_token_ids for r in engine.requests] == expected
        assert [c["index"] for c in reply["choices"]] == list(range(len(expected)))


def test_two_prompts_of_three_completions(client):
    reply = complete(client, prompt=["a", "bc"], n=3, max_tokens=12)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [c["text"] for c in reply["choices"]] == ["The answer 0", "The answer 1", "The answer 2"] * 2
    assert reply["usage"]["prompt_tokens"] == 3 and reply["usage"]["completion_tokens"] == 72


def test_two_prompts_of_three_completions_streamed(client):
    texts = dict.fromkeys(range(6), "")
    reasons = {}
    for chunk in stream(client, prompt=["a", "bc"], n=3, max_tokens=12):
        [choice] = chunk["choices"]
        assert choice["index"] not in reasons
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {i: f"The answer {i % 3}" for i in range(6)}
    assert reasons == dict.fromkeys(range(6), "length")


def test_parameters_reach_the_engine(client, engine):
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "seed": 42,
        "stop_token_ids": [3],
        "ignore_eos": True,
        "max_tokens": 9,
        "min_tokens": 2,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    complete(client, prompt="x", stop="4", logit_bias={"12": 3}, priority=5, cache_salt="s", **given)
    [request] = engine.requests
    assert {name: getattr(request.params, name) for name in given} == given
    assert request.params.stop == ["4"] and request.params.logit_bias == {12: 3.0}
    assert (request.priority, request.cache_salt, request.seed) == (5, "s", 42)


def test_null_means_default(client, engine):
    complete(client, prompt="x", temperature=None, n=None, stop=None, logit_bias=None, stream=None, suffix=None)
    assert engine.requests[0].params.temperature == 1.0


def test_fields_without_effect_are_ignored(client):
    complete(client, prompt="x", user="u", metadata={}, store=True, service_tier="auto", best_of=1, suffix="")


def test_stop_string(client):
    reply = complete(client, prompt="x", stop=[" is"], max_tokens=50)
    [choice] = reply["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("The answer 0", "stop", " is")


def test_logprobs(client):
    reply = complete(client, prompt="x", logprobs=2, max_tokens=3)
    logprobs = reply["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["T", "h", "e"]
    assert logprobs["token_logprobs"] == [-1.0] * 3
    assert logprobs["text_offset"] == [0, 1, 2]
    assert [len(top) for top in logprobs["top_logprobs"]] == [3, 3, 3]
    assert logprobs["top_logprobs"][0]["T"] == -1.0


def test_echo_with_logprobs(client):
    reply = complete(client, prompt="ab", echo=True, logprobs=0, max_tokens=2)
    [choice] = reply["choices"]
    assert choice["text"] == "abTh"
    assert choice["logprobs"]["tokens"] == ["a", "b", "T", "h"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_streamed(client, tokenizer, as_ids):
    prompt = tokenizer.encode("ab") if as_ids else "ab"
    chunks = stream(client, prompt=prompt, echo=True, logprobs=1, max_tokens=3)
    assert [c["choices"][0]["text"] for c in chunks] == ["abT", "h", "e"]
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks] == [[0, 1, 2], [3], [4]]


def test_prompt_logprobs_and_token_ids(client, tokenizer):
    reply = complete(client, prompt="ab", prompt_logprobs=0, return_token_ids=True, max_tokens=2)
    [choice] = reply["choices"]
    a, b = tokenizer.encode("ab")
    assert choice["prompt_logprobs"] == [None, {str(b): {"logprob": -1.0, "rank": 2, "decoded_token": "b"}}]
    assert choice["prompt_token_ids"] == [a, b] and choice["token_ids"] == tokenizer.encode("Th")


def test_stream_with_usage(client):
    *chunks, last = stream(client, prompt="hello", max_tokens=4, stream_options={"include_usage": True})
    assert "".join(c["choices"][0]["text"] for c in chunks) == "The "
    assert all(c["usage"] is None for c in chunks)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 9
    assert len({c["id"] for c in [*chunks, last]}) == 1


def test_stream_without_usage_has_no_such_field(client):
    assert all("usage" not in c for c in stream(client, prompt="hello", max_tokens=4))


def test_no_half_characters(client, engine):
    engine.script = "a\u00e9\u4e2d\U0001f600"
    chunks = stream(client, prompt="x", max_tokens=50)
    assert [c["choices"][0]["text"] for c in chunks] == ["a", "\u00e9", "\u4e2d", "\U0001f600", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_token_ids_without_tokenizer(client, engine):
    engine.tokenizer = None
    engine._frontend.tokenizer = None
    reply = complete(client, prompt=[1, 2], max_tokens=2, return_token_ids=True, logprobs=0, echo=True)
    [choice] = reply["choices"]
    assert choice["text"] == "" and len(choice["token_ids"]) == 2
    assert choice["logprobs"]["tokens"][:2] == ["token_id:1", "token_id:2"]
    response = client.post(URL, json={"prompt": "text"})
    assert response.status_code == 400 and "without a tokenizer" in response.json()["error"]["message"]


def test_end_of_sequence_counts_but_is_no_text(client, engine):
    engine.script = ""
    reply = complete(client, prompt="x", return_token_ids=True)
    assert reply["choices"][0]["text"] == "" and reply["choices"][0]["token_ids"] == [EOS]
