"""LLMEngine: engine and front end in one process, driven by whoever calls `step` (vLLM's interface)."""

from collections.abc import Callable
from itertools import count
from typing import Any, Literal

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

    def register_moe_routing_func(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        pure: bool | None = None,
        version: str | None = None,
        signature: Literal["simple", "full"] | None = None,
    ) -> str:
        """Let a function decide over routes, behind those registered before it.

        Args:
            function: `fn(scores, domain_tags) -> scores`, or `fn(moesaic.RoutingInput) -> moesaic.RoutingDecision`.
            name: for errors and logs; its own by default.
            pure: it makes of each token what it would make of it alone (its attribute `pure`, or True, by default);
                one that does not gives up that results depend on no other request.
            version: tells it from others of its name, in keys of cached prefixes; a hash of its source by default.
            signature: where parameters do not tell.

        Returns:
            the name.

        Raises:
            ConfigError: it cannot be called, its name is taken, the model's routes cannot be changed, or requests are
                under way.
        """
        return self.engine.register_routing_function(
            function, name=name, pure=pure, version=version, signature=signature
        )

    def unregister_moe_routing_func(self, name: str) -> None:
        """Let it decide no more; raises ConfigError for an unknown name, or while requests are under way."""
        self.engine.unregister_routing_function(name)

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
