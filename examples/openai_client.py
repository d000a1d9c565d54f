"""Ask a running server with the openai package: `moesaic serve` first, then `python examples/openai_client.py`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("MOESAIC_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("MOESAIC_API_KEY", "none"),
)
model = client.models.list().data[0].id

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Explain MoE architecture"}],
    max_tokens=48,
    temperature=0,
)
print(reply.choices[0].message.content)

# vLLM's sampling parameters go into extra_body
several = client.completions.create(
    model=model, prompt="12 + 30 =", n=3, max_tokens=8, seed=1, extra_body={"top_k": 20, "min_p": 0.05}
)
for choice in several.choices:
    print(choice.index, repr(choice.text))
