"""From a checked HTTP request to engine outputs: what both generating endpoints share."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from fastapi import Request
from msgspec import UNSET

from moesaic.core.outputs import RequestOutput
from moesaic.core.routing import RequestRouting
from moesaic.core.sampling_params import SamplingParams
from moesaic.entrypoints.server.errors import ApiError
from moesaic.entrypoints.server.protocol import GenerationRequest
from moesaic.entrypoints.server.replies import PromptTokensDetails, Reply, Usage
from moesaic.entrypoints.server.routed import check_size

if TYPE_CHECKING:
    from moesaic.engine.async_engine import AsyncEngine

T = TypeVar("T")


@dataclass
class Meter:
    """Counts a request's tokens as its outputs pass, each output whole or each a delta."""

    prompts: dict[int, tuple[int, int]] = field(default_factory=dict)  # prompt -> its tokens, of these cached
    completion_tokens: int = 0

    def add(self, prompt: int, output: RequestOutput) -> None:
        self.prompts[prompt] = (len(output.prompt_token_ids), output.num_cached_tokens)
        self.completion_tokens += sum(len(completion.token_ids) for completion in output.outputs)

    @property
    def usage(self) -> Usage:
        prompt_tokens = sum(tokens for tokens, _ in self.prompts.values())
        cached = sum(cached for _, cached in self.prompts.values())
        total = prompt_tokens + self.completion_tokens
        return Usage(prompt_tokens, self.completion_tokens, total, PromptTokensDetails(cached))


@dataclass
class Job:
    """One HTTP request's work: its prompts, each of which gives params.n completions.

    Attributes:
        routing: what the request uses, once an output has come; the next reply tells it.
    """

    engine: "AsyncEngine"
    id: str
    prompts: list[list[int]]
    params: SamplingParams
    priority: int
    cache_salt: str
    meter: Meter
    created: int = field(default_factory=lambda: int(time()))
    routing: RequestRouting | None = None
    _told_routing: bool = False

    @classmethod
    def of(
        cls, request: Request, body: GenerationRequest, prefix: str, prompts: list[list[int]], params: SamplingParams
    ) -> "Job":
        """The job of a request; its tokens are counted where the log finds them."""
        request.state.meter = meter = Meter()
        engine = engine_of(request)
        if params.return_routed_experts:
            check_size(engine.info.moe, params.n * sum(map(len, prompts)))
        return cls(
            engine=engine,
            id=f"{prefix}-{uuid4().hex}",
            prompts=prompts,
            params=params,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            meter=meter,
        )

    async def deltas(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(prompt, what is new of it), as it comes. Closing it aborts what still runs."""
        async with aclosing(merge([self._outputs(i, delta=True) for i in range(len(self.prompts))])) as outputs:
            async for i, output in outputs:
                self.meter.add(i, output)
                yield i, output

    async def finals(self) -> list[RequestOutput]:
        """The finished output of each prompt, in order."""
        last: dict[int, RequestOutput] = {}
        async with aclosing(merge([self._outputs(i, delta=False) for i in range(len(self.prompts))])) as outputs:
            async for i, output in outputs:
                last[i] = output
        for i, output in last.items():
            self.meter.add(i, output)
        return [last[i] for i in range(len(self.prompts))]

    async def _outputs(self, i: int, delta: bool) -> AsyncGenerator[RequestOutput, None]:
        """One prompt's outputs; an engine that gives it up raises."""
        stream = self.engine.generate(
            {"prompt_token_ids": self.prompts[i]},
            self.params,
            f"{self.id}-{i}",
            priority=self.priority,
            cache_salt=self.cache_salt,
            delta=delta,
        )
        async with aclosing(stream):  # type: ignore[type-var]
            async for output in stream:
                if output.error is not None:
                    raise ApiError(500, output.error)
                self.routing = output.routing
                yield output

    def reply(self, kind: str, choices: Sequence[object]) -> Reply:
        """A response or chunk around `choices`. The first one says what routing the request uses."""
        tells = self.routing is not None and not self._told_routing
        self._told_routing = self._told_routing or tells
        info = self.engine.info
        fingerprint = f"moesaic-{info.architecture}-{info.dtype}-{info.device}"
        return Reply(
            id=self.id,
            object=kind,
            created=self.created,
            model=info.names[0],
            system_fingerprint=fingerprint,
            choices=list(choices),
            routing=self.routing if self.routing is not None and tells else UNSET,
        )


def engine_of(request: Request) -> "AsyncEngine":
    """The engine behind the application."""
    engine: AsyncEngine = request.app.state.engine
    return engine


def check_model(request: Request, model: str | None) -> None:
    """Raise 404 unless `model` is served here, naming those that are; none means the one there is."""
    names = engine_of(request).info.names
    if model is not None and model not in names:
        served = ", ".join(map(repr, names))
        raise ApiError(
            404, f"model {model!r} is not served here: this server has {served}", param="model", code="model_not_found"
        )


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """(number of its stream, item) of several streams, as they come. The first failure ends all; so does closing."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(i, stream, queue)) for i, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            entry = await queue.get()
            if isinstance(entry, Exception):
                raise entry
            if entry is None:
                running -= 1
            else:
                yield entry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    i: int, stream: AsyncGenerator[T, None], queue: "asyncio.Queue[tuple[int, T] | Exception | None]"
) -> None:
    """Move one stream's items to the queue; None marks its end, an exception its failure."""
    try:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait((i, item))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


async def tokenize(request: Request, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text. In a thread: a long prompt must not hold up everybody's streams.

    Raises:
        ApiError: the server runs without a tokenizer.
    """
    tokenizer = engine_of(request).tokenizer
    if tokenizer is None:
        raise ApiError(400, "this server runs without a tokenizer: send token ids to /v1/completions", param="prompt")
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)
