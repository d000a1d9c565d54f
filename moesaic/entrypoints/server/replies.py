"""What clients get back: OpenAI's responses and stream chunks, as structs that msgspec writes in microseconds.

A field that is UNSET is absent from the JSON; one that is None is null there. `stop_reason`, `token_ids`,
`prompt_token_ids` and `prompt_logprobs` are vLLM's additions; `routing` tells which tags and rules a request used.
"""

from typing import Any

import msgspec
from fastapi import Response
from msgspec import UNSET, UnsetType

from moesaic.core.routing import RequestRouting

_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def json_response(reply: Any) -> Response:
    """`reply` as a response."""
    return Response(encode(reply), media_type="application/json")


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens of all prompts and all completions; a prompt counts once, however many completions it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


PromptLogprobs = list[dict[str, dict[str, Any]] | None]


class RoutedExpertsReply(msgspec.Struct):
    """Experts of consecutive tokens of a sequence, prompt and output, and what each's output was multiplied by.

    `ids` and `weights` are lists of tokens, of lists of `layers`, of lists of k; a place without an expert has -1 and
    0. The first token stands at position `start`. Weights have six decimals.
    """

    layers: list[int]
    start: int
    ids: list[list[list[int]]]
    weights: list[list[list[float]]]


class Reply(msgspec.Struct, kw_only=True):
    """The frame of every response and chunk."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    routing: RequestRouting | UnsetType = UNSET


# ---------------------------------------------------------------- completions


class CompletionLogprobs(msgspec.Struct):
    """One entry a token in each list; `text_offset` counts characters from the beginning of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A completion, or what is new of it in a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExpertsReply | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET


# ---------------------------------------------------------------- chat


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct):
    """The answer."""

    role: str
    content: str
    refusal: None = None


class Delta(msgspec.Struct):
    """What is new of the answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """An answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExpertsReply | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExpertsReply | UnsetType = UNSET
