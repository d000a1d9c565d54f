"""Requests for tests that need no text: token ids and parameters in, EngineRequest out."""

from itertools import count
from typing import Any

from moesaic.core.request import EngineRequest
from moesaic.core.sampling_params import SamplingParams

_ids = count()


def make_request(prompt: list[int], *, max_tokens: int = 8, **kwargs: Any) -> EngineRequest:
    """A request as the front end would make it; keyword arguments of both EngineRequest and SamplingParams."""
    own = {name: kwargs.pop(name) for name in list(kwargs) if name in EngineRequest.__struct_fields__}
    number = next(_ids)
    defaults: dict[str, Any] = {
        "request_id": f"r{number}",
        "stop_token_ids": [],
        "eos_token_ids": [],
        "seed": 0,
        "arrival_time": float(number),
    }
    params = SamplingParams(max_tokens=max_tokens, **kwargs)
    return EngineRequest(prompt_token_ids=prompt, params=params, max_tokens=max_tokens, **(defaults | own))
