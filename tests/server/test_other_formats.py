"""Checkpoints that are no folder of safetensors, served in a process of its own."""

import openai
import pytest

from tests.gguf_files import describe_tokenizer, write_gguf
from tests.server.real_server import RealServer


@pytest.fixture(scope="module")
def embedded_gguf(embedded_path, tmp_path_factory):
    """The embedded model, with its tokenizer, as a GGUF file."""
    out = tmp_path_factory.mktemp("embedded") / "embedded.gguf"
    return str(write_gguf(embedded_path, out, tokenizer=describe_tokenizer(embedded_path)))


def test_a_gguf_file_chats(embedded_gguf):
    """The model is asked by the file's name, with the chat template in it; the stream is the same text."""
    asked = {"messages": [{"role": "user", "content": "What is 12 + 34?"}], "max_tokens": 24, "temperature": 0}
    with (
        RealServer("--model", embedded_gguf) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        [model] = client.models.list()
        reply = client.chat.completions.create(model=model.id, **asked)
        stream = client.chat.completions.create(model=model.id, **asked, stream=True)
        assert "46" in reply.choices[0].message.content and reply.choices[0].finish_reason == "stop"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == reply.choices[0].message.content
