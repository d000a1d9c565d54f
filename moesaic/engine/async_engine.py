"""AsyncEngine: the API process's face of the engine process. Torch-free; one batch of events a step comes in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import msgspec

from moesaic.core.errors import EngineDeadError, MoesaicError, RequestError
from moesaic.core.log import get_logger
from moesaic.core.messages import Abort, Add, Answer, Ask, EngineInfo, EngineStats, MoeSummary, StepEvents
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.frontend import Frontend, Prompt
from moesaic.engine.metrics import Metrics
from moesaic.engine.routing_profiles import REFRESH_SECONDS, RoutingProfiles
from moesaic.engine.supervisor import EngineProcess, error_of
from moesaic.engine.tokenizer import Tokenizer

logger = get_logger(__name__)
REFRESH_TIMEOUT = 0.5  # seconds


class AsyncEngine:
    """Many requests at once, each an asynchronous stream of outputs.

    Attributes:
        args: what it was started with.
        info: what the engine told when it was ready.
        stats: its counters after the latest step.
        metrics: for Prometheus.
        profiles: routing profiles.
    """

    def __init__(
        self,
        args: EngineArgs,
        process: EngineProcess,
        tokenizer: Tokenizer | None,
        profiles: RoutingProfiles | None = None,
    ) -> None:
        self.args = args
        self.info: EngineInfo = process.info
        self.tokenizer = tokenizer
        self.stats = EngineStats(
            kv_blocks_total=process.info.num_blocks, state_slots_total=process.info.num_state_slots
        )
        self.metrics = Metrics(process.info)
        self._process = process
        self._frontend = Frontend(process.info, tokenizer, profiles)
        self.profiles = self._frontend.profiles
        self._queues: dict[str, asyncio.Queue[RequestOutput | MoesaicError]] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._question_ids = count()
        self._failure: MoesaicError | None = None
        self._listener = asyncio.create_task(self._listen())
        self._watcher = asyncio.create_task(self._watch_profiles())

    @classmethod
    async def start(cls, args: EngineArgs) -> "AsyncEngine":
        """Start the engine process and wait until it is ready.

        Raises:
            ConfigError, CheckpointError: as the engine gave them.
        """
        profiles = RoutingProfiles(args.moe_routing_profile, args.moe_active_profile)
        process = await EngineProcess.start(args)
        try:
            path = args.tokenizer or process.info.model_path
            tokenizer = None if args.skip_tokenizer_init else Tokenizer(path, args.chat_template)
            return cls(args, process, tokenizer, profiles)
        except BaseException:
            await process.stop()
            raise

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        delta: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        """Stream one request's outputs: one after each step that changed it.

        Closing or cancelling the iterator aborts the request; its blocks are free after the step under way.

        Args:
            delta: each output holds only what is new, and only the completions that changed.

        Raises:
            RequestError: the request can never be served.
            EngineDeadError: the engine process ended.
        """
        self.check_health()
        request = self._frontend.admit(
            request_id, prompt, params, priority=priority, cache_salt=cache_salt, delta=delta
        )
        self.metrics.arrive(request_id)
        queue: asyncio.Queue[RequestOutput | MoesaicError] = asyncio.Queue()
        self._queues[request_id] = queue
        finished = False
        try:
            await self._process.send(Add(request))
            while not finished:
                item = await queue.get()
                if isinstance(item, MoesaicError):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            self._queues.pop(request_id, None)
            if not finished:
                await self.abort(request_id)

    async def ask(self, kind: str, **arguments: Any) -> Any:
        """What the engine says to a question (`Engine.answers`), as plain data: after the step under way.

        Raises:
            RequestError: as the engine gave it.
            EngineDeadError: the engine process ended.
            MoesaicError: another error of the engine's.
        """
        self.check_health()
        number = next(self._question_ids)
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            await self._process.send(Ask(number, kind, arguments))
            return await answer
        finally:
            del self._questions[number]

    async def refresh(self) -> None:
        """Bring what metrics say of experts and memory up to date; they stay as they are while the engine is dead, or
        busy with a long step."""
        with contextlib.suppress(TimeoutError, MoesaicError):
            summary = await asyncio.wait_for(self.ask("summary"), REFRESH_TIMEOUT)
            self.metrics.observe_moe(msgspec.convert(summary, MoeSummary))

    async def abort(self, request_id: str) -> None:
        """Forget a request. Unknown ids are ignored."""
        self._frontend.forget(request_id)
        self.metrics.forget(request_id)
        if self._failure is None:
            await self._process.send(Abort([(request_id, -1)]))

    def check_health(self) -> None:
        """Raise EngineDeadError if the engine can serve no more."""
        if self._failure is not None:
            raise EngineDeadError(f"the engine is dead: {self._failure}")

    async def wait_dead(self) -> MoesaicError:
        """Return once the engine has failed, with the reason."""
        await asyncio.wait((self._listener,))
        return self._failure or EngineDeadError("the engine was shut down")

    async def shutdown(self) -> None:
        """End the engine process; streams under way end with EngineDeadError."""
        tasks = self._listener, self._watcher
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(self._failure or EngineDeadError("the engine is shutting down"))
        await self._process.stop()

    async def _listen(self) -> None:
        """Hand each step's events to the streams they belong to, until the engine ends."""
        try:
            while True:
                message = await self._process.receive()
                if isinstance(message, Answer):
                    self._settle(message)
                else:
                    assert isinstance(message, StepEvents)
                    await self._dispatch(message)
        except asyncio.CancelledError:
            raise
        except MoesaicError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("reading the engine's events failed")
            self._fail(EngineDeadError(f"reading the engine's events failed: {error}"))

    async def _watch_profiles(self) -> None:
        """Take up routing profiles that change. In a thread: a file may lie anywhere."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if self.profiles.watched:
                await asyncio.to_thread(self.profiles.refresh)

    async def _dispatch(self, events: StepEvents) -> None:
        self.stats = events.stats
        outputs, stopped = self._frontend.process(events.updates)
        self.metrics.observe_step(events.stats, events.updates, outputs, events.moe)
        for output in outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)
        if stopped:
            await self._process.send(Abort(stopped))

    def _settle(self, answer: Answer) -> None:
        question = self._questions.get(answer.id)  # none where the one who asked waits no longer
        if question is None or question.done():
            return
        if answer.error is None:
            question.set_result(answer.data)
        elif answer.kind == RequestError.__name__:
            question.set_exception(RequestError(answer.error, answer.param))
        else:
            error = error_of(answer.kind, answer.error)
            question.set_exception(error or MoesaicError(f"the engine failed on a question: {answer.error}"))

    def _fail(self, error: MoesaicError) -> None:
        if self._failure is None:
            self._failure = error
        for queue in self._queues.values():
            queue.put_nowait(EngineDeadError(f"the engine is dead: {error}"))
        for question in self._questions.values():
            if not question.done():
                question.set_exception(EngineDeadError(f"the engine is dead: {error}"))
