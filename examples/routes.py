"""See where each token of an answer goes: `moesaic serve` first, then `python examples/routes.py`.

A token's experts come with the chunk after it: it is routed when the next one is drawn from it.
"""

import os

from openai import OpenAI

LAYER = 0

client = OpenAI(
    base_url=os.environ.get("MOESAIC_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("MOESAIC_API_KEY", "none"),
)
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "Give me a JSON object for a user with name and age"}],
    max_tokens=24,
    temperature=0,
    stream=True,
    extra_body={"return_routed_experts": True},
)
texts: dict[int, str] = {}  # position -> text of the token there
for chunk in stream:
    for choice in chunk.choices:
        routes = (choice.model_extra or {}).get("routed_experts")
        if routes is None:
            continue
        for position, ids in enumerate(routes["ids"], start=routes["start"]):
            if position in texts:
                print(f"{texts[position]!r:>10} went to experts {ids[LAYER]} of layer {routes['layers'][LAYER]}")
        next_position = routes["start"] + len(routes["ids"])
        texts[next_position] = choice.delta.content or ""
