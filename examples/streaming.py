"""Print an answer as it comes, then what it cost: `moesaic serve` first, then `python examples/streaming.py`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("MOESAIC_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("MOESAIC_API_KEY", "none"),
)

stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "Explain MoE architecture"}],
    max_tokens=48,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} generated")
