"""The openai package against a started server with the embedded model."""

import asyncio
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import pytest

from tests.server.real_server import until

MODEL = "moe-model"
ASK = [{"role": "user", "content": "Explain MoE architecture"}]
PROMPT = "Explain MoE architecture"


def test_models(openai_client):
    assert [model.id for model in openai_client.models.list()] == [MODEL, "alias"]
    assert openai_client.models.retrieve("alias").owned_by == "moesaic"


def test_completion(openai_client):
    reply = openai_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    [choice] = reply.choices
    assert choice.text and choice.finish_reason == "length"
    assert reply.usage.completion_tokens == 12 and reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12


def test_chat(openai_client):
    reply = openai_client.chat.completions.create(model="alias", messages=ASK, max_tokens=16, temperature=0)
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].message.content


def test_stream_with_usage_says_the_same(openai_client):
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 16, "temperature": 0}
    whole = openai_client.chat.completions.create(**asked)
    stream = openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs(openai_client):
    reply = openai_client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    for entry in reply.choices[0].logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert bytes(entry.bytes).decode() == entry.token


def test_logprobs_of_an_echoed_prompt(openai_client):
    reply = openai_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2, echo=True, logprobs=1)
    logprobs = reply.choices[0].logprobs
    assert reply.choices[0].text.startswith(PROMPT)
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_three_completions(openai_client):
    reply = openai_client.completions.create(model=MODEL, prompt="The", n=3, max_tokens=12, temperature=1.5, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.text for choice in reply.choices}) > 1
    assert reply.usage.completion_tokens <= 36


def test_several_prompts_streamed(openai_client):
    texts = {}
    for chunk in openai_client.completions.create(model=MODEL, prompt=["One", "Two"], n=2, max_tokens=6, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert sorted(texts) == [0, 1, 2, 3]


def test_stop(openai_client):
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = openai_client.completions.create(**asked).choices[0].text
    word = whole.split()[3]
    cut = openai_client.completions.create(**asked, stop=[word]).choices[0]
    assert cut.text == whole[: whole.index(word)] and cut.finish_reason == "stop"


def test_seed(openai_client):
    asked = {"model": MODEL, "prompt": "The", "max_tokens": 24, "temperature": 2.0}
    texts = [openai_client.completions.create(**asked, seed=7).choices[0].text for _ in range(2)]
    assert texts[0] == texts[1]
    others = {openai_client.completions.create(**asked, seed=seed).choices[0].text for seed in range(8, 14)}
    assert others - {texts[0]}


def test_vllm_extras(openai_client):
    reply = openai_client.completions.create(
        model=MODEL,
        prompt=[5, 6, 7],
        max_tokens=8,
        extra_body={"top_k": 1, "min_tokens": 8, "ignore_eos": True, "return_token_ids": True, "prompt_logprobs": 1},
    )
    [choice] = reply.choices
    assert len(choice.token_ids) == 8 and choice.prompt_token_ids == [5, 6, 7]
    assert len(choice.prompt_logprobs) == 3 and choice.prompt_logprobs[0] is None


def test_errors(openai_client):
    with pytest.raises(openai.NotFoundError, match="'moe-model'"):
        openai_client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        openai_client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="2048"):
        openai_client.completions.create(model=MODEL, prompt=[5] * 3000)
    with pytest.raises(openai.BadRequestError, match="2048"):
        openai_client.completions.create(model=MODEL, prompt=[5] * 3000, stream=True)
    with pytest.raises(openai.BadRequestError, match="image_url"):
        part = {"type": "image_url", "image_url": {"url": "data:,"}}
        openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [part]}])


def test_32_streams_at_once(server):
    async def one(client: openai.AsyncOpenAI, i: int) -> int:
        stream = await client.completions.create(
            model=MODEL,
            prompt=f"{i} + {i} =",
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        return [chunk async for chunk in stream][-1].usage.completion_tokens

    async def all_of_them() -> list[int]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(32)))

    assert asyncio.run(all_of_them()) == [8] * 32


def blocks_used(server) -> float:
    text = urlopen(server.url + "/metrics").read().decode()
    return float(re.search(r"^moesaic_kv_blocks_used (\S+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("stream", [True, False])
def test_client_gone_gives_its_blocks_back(server, stream):
    address = urlsplit(server.url)
    body = f'{{"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": {str(stream).lower()}}}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        if stream:
            assert b"200 OK" in connection.recv(4096)
        until(lambda: blocks_used(server) > 0)
    took = until(lambda: blocks_used(server) == 0)
    print(f"blocks back after {took:.2f} s (wanted: 2 s)")


def test_api_process_never_loads_torch(server):
    def libraries(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" not in libraries(server.process.pid)
    assert "libtorch" in libraries(server.engine_pid)
