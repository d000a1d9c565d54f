"""POST /v1/chat/completions, whole and streamed."""

from tests.server.fake_engine import MAX_MODEL_LEN, read_events

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(client, messages=HELLO, **body):
    response = client.post(URL, json={"messages": messages} | body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, messages=HELLO, **body):
    response = client.post(URL, json={"messages": messages, "stream": True} | body)
    assert response.status_code == 200, response.text
    *chunks, done = read_events(response.text)
    assert done == "[DONE]"
    return chunks


def prompt_of(engine):
    return engine.tokenizer.decode(engine.requests[-1].prompt_token_ids)


def test_whole(client):
    reply = chat(client, model="fake/alias")
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-")
    [choice] = reply["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "The answer 0 is 42.", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 20


def test_template_and_roles(client, engine):
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be short"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}],
            "name": "ann",
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "refusal": None, "annotations": []},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]
    chat(client, messages)
    assert prompt_of(engine) == (
        "<system>be kind\n<developer>be short\n<user>two\nparts\n<assistant>\n<tool>5\n<assistant>"
    )


def test_without_generation_prompt(client, engine):
    chat(client, add_generation_prompt=False)
    assert prompt_of(engine) == "<user>hello\n"


def test_continue_final_message(client, engine):
    chat(client, [*HELLO, {"role": "assistant", "content": "Well,"}], continue_final_message=True)
    assert prompt_of(engine) == "<user>hello\n<assistant>Well,"


def test_default_is_the_rest_of_the_context(client, engine):
    engine.script = "x" * 1000
    reply = chat(client)
    assert reply["usage"]["total_tokens"] == MAX_MODEL_LEN
    assert reply["choices"][0]["finish_reason"] == "length"


def test_max_tokens_by_either_name(client):
    for name in ("max_tokens", "max_completion_tokens"):
        assert chat(client, **{name: 3})["choices"][0]["message"]["content"] == "The"


def test_logprobs(client):
    reply = chat(client, logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = reply["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("T", -1.0, [ord("T")])
    assert second["bytes"] == [ord("h")]
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -1.0]  # the chosen one is the second best
    assert first["top_logprobs"][1]["token"] == "T"


def test_logprobs_alone_have_no_rivals(client):
    reply = chat(client, logprobs=True, max_tokens=1)
    assert reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_stream(client):
    chunks = stream(client, stream_options={"include_usage": True}, max_tokens=5)
    first, *middle, last, usage = chunks
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"] for c in middle] == [{"content": t} for t in "The "]
    assert last["choices"][0]["delta"] == {"content": "a"} and last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5
    assert all(c["usage"] is None for c in chunks[:-1])


def test_stream_of_several(client):
    contents = {0: "", 1: "", 2: ""}
    roles = []
    for chunk in stream(client, n=3):
        [choice] = chunk["choices"]
        if "role" in choice["delta"]:
            roles.append(choice["index"])
        contents[choice["index"]] += choice["delta"].get("content", "")
    assert contents == {j: f"The answer {j} is 42." for j in range(3)}
    assert sorted(roles) == [0, 1, 2]


def test_stream_with_logprobs(client):
    chunks = stream(client, logprobs=True, top_logprobs=1, max_tokens=3)
    tokens = [entry["token"] for c in chunks for entry in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert tokens == ["T", "h", "e"]


def test_vllm_extras(client, engine):
    reply = chat(client, prompt_logprobs=1, return_token_ids=True, max_tokens=2, chat_template_kwargs={"unused": 1})
    assert reply["prompt_token_ids"] == engine.requests[0].prompt_token_ids
    assert len(reply["prompt_logprobs"]) == len(reply["prompt_token_ids"]) and reply["prompt_logprobs"][0] is None
    assert len(reply["choices"][0]["token_ids"]) == 2


def test_what_asks_for_nothing_is_accepted(client):
    chat(
        client,
        response_format={"type": "text"},
        tools=[{"type": "function"}],
        tool_choice="none",
        parallel_tool_calls=True,
        modalities=["text"],
        reasoning_effort=None,
        user="u",
    )
