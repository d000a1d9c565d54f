"""LLMEngine: engine and front end in one process, driven by whoever calls `step` (vLLM's interface)."""

from itertools import count
from typing import Any

from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.engine import Engine
from moesaic.engine.frontend import Frontend, Prompt
from moesaic.engine.routing_profiles import RoutingProfiles
from moesaic.engine.tokenizer import Tokenizer


class LLMEngine:
    """Add requests, then call `step` until none is unfinished.

    Raises:
        ConfigError, CheckpointError: the arguments or the model cannot be used.
    """

    def __init__(self, args: EngineArgs) -> None:
        profiles = RoutingProfiles(args.moe_routing_profile, args.moe_active_profile)
        self.engine = Engine(args)
        path = args.tokenizer or self.engine.info.model_path
        self.tokenizer = None if args.skip_tokenizer_init else Tokenizer(path, args.chat_template)
        self.frontend = Frontend(self.engine.info, self.tokenizer, profiles)
        self._ids = count()
        self._held: list[RequestOutput] = []  # of other requests, while `generate` drove the engine

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "LLMEngine":
        """The engine that the arguments describe."""
        return cls(args)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        """Queue a request; raises RequestError if it can never be served."""
        self.frontend.profiles.refresh_if_due()
        request = self.frontend.admit(
            request_id, prompt, params or SamplingParams(), priority=priority, cache_salt=cache_salt
        )
        try:
            self.engine.add(request)
        except Exception:
            self.frontend.forget(request_id)
            raise

    def abort_request(self, request_id: str) -> None:
        """Forget a request; its blocks are free at once. Unknown ids are ignored."""
        self.frontend.forget(request_id)
        self.engine.abort(request_id)

    def ask(self, kind: str, **arguments: Any) -> Any:
        """What the engine says to a question (`Engine.answers`), as plain data; raises RequestError."""
        return self.engine.ask(kind, **arguments)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has work to do, or outputs to hand out."""
        return self.engine.has_unfinished or bool(self._held)

    def step(self) -> list[RequestOutput]:
        """Run one step; the outputs (cumulative) of the requests that it touched."""
        held, self._held = self._held, []
        return held + self._step() if self.engine.has_unfinished else held

    def _step(self) -> list[RequestOutput]:
        outputs, stopped = self.frontend.process(self.engine.step())
        for request_id, index in stopped:
            self.engine.abort(request_id, index)
        return outputs

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """Serve one prompt to its end. Others that were added go on beside it; the next `step` tells of them."""
        request_id = f"generate-{next(self._ids)}"
        self.add_request(request_id, prompt, params)
        while True:
            for output in self._step():
                if output.request_id != request_id:
                    self._held.append(output)
                elif output.finished:
                    return output
