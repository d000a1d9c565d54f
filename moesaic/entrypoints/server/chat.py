"""POST /v1/chat/completions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from moesaic.core.errors import RequestError
from moesaic.core.outputs import CompletionOutput
from moesaic.entrypoints.server import logprobs
from moesaic.entrypoints.server.body import read_body
from moesaic.entrypoints.server.errors import ApiError
from moesaic.entrypoints.server.generation import Job, check_model, engine_of
from moesaic.entrypoints.server.openapi import takes
from moesaic.entrypoints.server.protocol import ChatRequest
from moesaic.entrypoints.server.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    Delta,
    json_response,
)
from moesaic.entrypoints.server.routed import routed_experts
from moesaic.entrypoints.server.streaming import DONE, event, stream_response, while_connected

KIND = "chat.completion"
CHUNK = "chat.completion.chunk"
router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    body = await read_body(request, ChatRequest)
    check_model(request, body.model)
    try:
        prompt = await _prompt(request, body)
        job = Job.of(request, body, "chatcmpl", [prompt], body.sampling_params())
        if body.stream:
            return await stream_response(request, _stream(job, body))
        [output] = await while_connected(request.receive, job.finals())
    except RequestError as error:
        raise RequestError(str(error), _chat_name(error.param, body)) from error
    reply = job.reply(KIND, [_choice(job, body, part) for part in output.outputs])
    reply.usage = job.meter.usage
    if body.prompt_logprobs is not None:
        reply.prompt_logprobs = logprobs.for_prompt(output.prompt_logprobs or [])
    if body.return_token_ids:
        reply.prompt_token_ids = output.prompt_token_ids
    return json_response(reply)


async def _prompt(request: Request, body: ChatRequest) -> list[int]:
    """The conversation as token ids, by the model's template. In a thread: a long one must not hold up streams."""
    tokenizer = engine_of(request).tokenizer
    if tokenizer is None:
        raise ApiError(400, "chat needs a tokenizer, and this server runs without: send token ids to /v1/completions")

    def render() -> list[int]:
        messages = [message.for_template() for message in body.messages]
        text = tokenizer.apply_chat_template(messages, **body.template_arguments())
        return tokenizer.encode(text, add_special_tokens=False)  # the template writes its own

    return await asyncio.to_thread(render)


def _chat_name(param: str | None, body: ChatRequest) -> str | None:
    """What a chat request calls the engine's `param`."""
    names = {"prompt": "messages", "logprobs": "top_logprobs"}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    return names.get(param, param) if param else None


async def _stream(job: Job, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    """Chunks as they come, all of one engine step in one write; each choice begins with its role."""
    begun: set[int] = set()

    def chunk(choice: ChatChunkChoice) -> bytes:
        reply = job.reply(CHUNK, [choice])
        reply.usage = None if body.include_usage else UNSET
        return event(reply)

    async with aclosing(job.deltas()) as deltas:
        async for _, output in deltas:
            events = []
            for part in output.outputs:
                if part.index not in begun:
                    begun.add(part.index)
                    events.append(chunk(_first_chunk(part.index)))
                wants_tokens = body.logprobs or body.return_token_ids or body.return_routed_experts
                if part.text or part.finish_reason or (part.token_ids and wants_tokens):
                    events.append(chunk(_chunk(job, body, part)))
            if events:
                yield b"".join(events)
    if body.include_usage:
        last = job.reply(CHUNK, [])
        last.usage = job.meter.usage
        yield event(last)
    yield DONE


def _choice(job: Job, body: ChatRequest, part: CompletionOutput) -> ChatChoice:
    return ChatChoice(
        index=part.index,
        message=ChatMessage("assistant", part.text),
        logprobs=_logprobs(job, body, part),
        finish_reason=part.finish_reason,
        stop_reason=part.stop_reason,
        token_ids=_token_ids(body, part),
        routed_experts=routed_experts(part) or UNSET,
    )


def _first_chunk(index: int) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=index, delta=Delta("assistant", ""), logprobs=None, finish_reason=None, stop_reason=None
    )


def _chunk(job: Job, body: ChatRequest, part: CompletionOutput) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=part.index,
        delta=Delta(content=part.text) if part.text else Delta(),
        logprobs=_logprobs(job, body, part),
        finish_reason=part.finish_reason,
        stop_reason=part.stop_reason,
        token_ids=_token_ids(body, part),
        routed_experts=routed_experts(part) or UNSET,
    )


def _logprobs(job: Job, body: ChatRequest, part: CompletionOutput) -> ChatLogprobs | None:
    if not body.logprobs or part.logprobs is None:
        return None
    return logprobs.for_chat(part.logprobs, body.top_logprobs or 0, job.engine.tokenizer)


def _token_ids(body: ChatRequest, part: CompletionOutput) -> list[int] | UnsetType:
    return part.token_ids if body.return_token_ids else UNSET
