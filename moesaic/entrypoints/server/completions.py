"""POST /v1/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from moesaic.core.outputs import CompletionOutput, RequestOutput
from moesaic.entrypoints.server import logprobs
from moesaic.entrypoints.server.body import read_body
from moesaic.entrypoints.server.generation import Job, check_model, tokenize
from moesaic.entrypoints.server.openapi import takes
from moesaic.entrypoints.server.protocol import CompletionRequest
from moesaic.entrypoints.server.replies import CompletionChoice, CompletionLogprobs, json_response
from moesaic.entrypoints.server.routed import routed_experts
from moesaic.entrypoints.server.streaming import DONE, event, stream_response, while_connected

KIND = "text_completion"
router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionRequest))
async def create_completion(request: Request) -> Response:
    """Complete a prompt, or several: choice i * n + j is the j-th completion of prompt i."""
    body = await read_body(request, CompletionRequest)
    check_model(request, body.model)
    params = body.sampling_params()
    prompts = [
        await tokenize(request, prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt
        for prompt in body.prompt
    ]
    job = Job.of(request, body, "cmpl", prompts, params)
    choices = _Choices(job, body)
    if body.stream:
        return await stream_response(request, _stream(job, body, choices))
    outputs = await while_connected(request.receive, job.finals())
    parts = [choices.of(i, output, part) for i, output in enumerate(outputs) for part in output.outputs]
    reply = job.reply(KIND, parts)
    reply.usage = job.meter.usage
    return json_response(reply)


async def _stream(job: Job, body: CompletionRequest, choices: "_Choices") -> AsyncGenerator[bytes, None]:
    """Chunks as they come, all of one engine step in one write."""
    async with aclosing(job.deltas()) as deltas:
        async for i, output in deltas:
            events = []
            for part in output.outputs:
                choice = choices.of(i, output, part)
                if choice.text or choice.logprobs or choice.token_ids or choice.routed_experts or choice.finish_reason:
                    chunk = job.reply(KIND, [choice])
                    chunk.usage = None if body.include_usage else UNSET
                    events.append(event(chunk))
            if events:
                yield b"".join(events)
    if body.include_usage:
        last = job.reply(KIND, [])
        last.usage = job.meter.usage
        yield event(last)
    yield DONE


@dataclass
class _Choices:
    """Makes choices of the engine's completions, whole or delta by delta, and remembers how far each has come."""

    job: Job
    body: CompletionRequest
    lengths: dict[int, int] = field(default_factory=dict)  # choice -> characters given so far

    def of(self, i: int, output: RequestOutput, part: CompletionOutput) -> CompletionChoice:
        """What `part` adds to its choice; the first token's brings the prompt along, if an echo is wanted."""
        index = i * self.job.params.n + part.index
        begins = index not in self.lengths and bool(part.token_ids)
        echoes = begins and bool(self.body.echo)
        text = self._prompt_text(i) + part.text if echoes else part.text
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, output, part, echoes),
            finish_reason=part.finish_reason,
            stop_reason=part.stop_reason,
            routed_experts=routed_experts(part) or UNSET,
        )
        if begins or text:
            self.lengths[index] = self.lengths.get(index, 0) + len(text)
        if self.body.return_token_ids:
            choice.token_ids = part.token_ids
            choice.prompt_token_ids = output.prompt_token_ids if begins else UNSET
        if self.body.prompt_logprobs is not None:
            choice.prompt_logprobs = logprobs.for_prompt(output.prompt_logprobs or [])
        return choice

    def _prompt_text(self, i: int) -> str:
        prompt = self.body.prompt[i]
        if isinstance(prompt, str):
            return prompt
        tokenizer = self.job.engine.tokenizer
        return tokenizer.decode(prompt, skip_special_tokens=False) if tokenizer is not None else ""

    def _logprobs(
        self, index: int, output: RequestOutput, part: CompletionOutput, echoes: bool
    ) -> CompletionLogprobs | None:
        """Of the new tokens; with an echo of the prompt's before them. None where there is nothing to tell."""
        if self.body.logprobs is None or part.logprobs is None or not part.token_ids:
            return None
        tokenizer = self.job.engine.tokenizer
        if echoes and output.prompt_logprobs is not None:
            ids = [*output.prompt_token_ids, *part.token_ids]
            return logprobs.for_completion(ids, [*output.prompt_logprobs, *part.logprobs], 0, tokenizer)
        return logprobs.for_completion(part.token_ids, part.logprobs, self.lengths.get(index, 0), tokenizer)
