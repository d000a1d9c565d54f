"""A model in this process that answers one prompt at a time, piece by piece."""

import os
from collections.abc import Generator
from itertools import count

from moesaic.core.log import setup_logging
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.frontend import Prompt


def quiet(level: str) -> None:
    """Log from this level on, unless the environment says otherwise."""
    os.environ.setdefault("MOESAIC_LOG_LEVEL", level)
    setup_logging()


class LocalModel:
    """Loads on construction; raises ConfigError or CheckpointError."""

    def __init__(self, args: EngineArgs) -> None:
        quiet("WARNING")  # the answer is what one wants to read
        from moesaic.engine.llm_engine import LLMEngine

        self.engine = LLMEngine.from_engine_args(args)
        self._ids = count()

    @property
    def name(self) -> str:
        return self.engine.engine.info.names[0]

    def outputs(self, prompt: Prompt, params: SamplingParams) -> Generator[RequestOutput, None, None]:
        """The output so far, after each step. Closing it abandons the request.

        Raises:
            RequestError: the prompt or the parameters cannot be served.
        """
        request_id = f"cli-{next(self._ids)}"
        self.engine.add_request(request_id, prompt, params)
        try:
            while self.engine.has_unfinished_requests():
                yield from (output for output in self.engine.step() if output.request_id == request_id)
        finally:
            self.engine.abort_request(request_id)
