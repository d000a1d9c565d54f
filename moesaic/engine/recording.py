"""Recording routes while the engine serves: one recorder at a time, from `start` to `stop`, which writes its file."""

import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from moesaic.core.errors import RequestError
from moesaic.core.log import get_logger
from moesaic.core.request import Sequence as EngineSequence
from moesaic.core.routes import RoutedExperts, RoutedTokens
from moesaic.core.routing_options import RoutingOptions
from moesaic.core.step import StepPlan
from moesaic.experts.profile_file import write_routes
from moesaic.experts.recorder import RouteRecorder, Rows
from moesaic.experts.stats import Tap

logger = get_logger(__name__)
MAX_STREAM_BYTES = 256 << 20  # of choices kept one by one, in memory and in the file


class RouteRecording:
    """What the engine's questions `profile_start`, `profile_stop` and `profile_status` come to.

    Every token is recorded in the step that first computes it: neither what is computed again after a preemption, nor
    what the prefix cache gives.

    Args:
        taps: the model's routers, in the order of `StepResult.routes`.
    """

    def __init__(self, model: str, taps: Sequence[Tap]) -> None:
        self._model = model
        self._taps = taps
        self._recorder: RouteRecorder | None = None
        self._path = ""
        self._only: frozenset[str] = frozenset()
        self._began = 0.0

    @property
    def active(self) -> bool:
        return self._recorder is not None

    def start(
        self, path: str, tags: list[str] | None = None, stream_tokens: int = 0, overwrite: bool = False
    ) -> dict[str, Any]:
        """Begin; the file at `path` is written at the end.

        Args:
            tags: record only requests with one of these; all by default.
            stream_tokens: keep the choices of so many tokens one by one, too; none are kept beyond.

        Raises:
            RequestError: a recorder runs already, there is nothing to record, or no file can be at `path`.
        """
        if self._recorder is not None:
            raise RequestError(f"routes are being recorded already, for {self._path}: stop that first")
        if not self._taps:
            raise RequestError("this model has no experts that tokens are routed to: there is nothing to record")
        _check_path(path, overwrite)
        recorder = RouteRecorder(
            self._model,
            [tap.layer for tap in self._taps],
            [tap.num_experts for tap in self._taps],
            [tap.top_k for tap in self._taps],
            _tokens_of_stream(stream_tokens, sum(max(1, tap.top_k) for tap in self._taps)),
        )
        self._only = frozenset(RoutingOptions(tags=tags or []).tags)
        self._recorder, self._path, self._began = recorder, path, monotonic()
        logger.info("recording routes for %s", path)
        return self.status()

    def take(self, plan: StepPlan, routes: RoutedTokens | None, sequence: Callable[[int], EngineSequence]) -> None:
        """Record a step: `routes` are those of all its tokens, in the order of the plan."""
        if self._recorder is None or routes is None:
            return
        step = RoutedExperts([routes])
        ids, weights, row = step.ids, step.weights, 0
        for item in plan.advance:
            routing = sequence(item.seq_id).request.routing
            tags = routing.tags if routing is not None else []
            new = slice(row + item.again, row + item.num_tokens)
            row += item.num_tokens
            if item.again < item.num_tokens and (not self._only or not self._only.isdisjoint(tags)):
                self._recorder.add(Rows(ids[new], weights[new], tags))

    def stop(self) -> dict[str, Any]:
        """End, and write the file.

        Returns:
            what `status` says, and the file's size.

        Raises:
            RequestError: nothing is being recorded, or the file cannot be written: recording then goes on.
        """
        if self._recorder is None:
            raise RequestError("no routes are being recorded: start that first")
        self._recorder.top_k = [tap.top_k for tap in self._taps]  # some are known when tokens have come
        status = self.status()
        try:
            nbytes = write_routes(self._recorder.profile(), self._path)
        except OSError as e:
            raise RequestError(f"cannot write {self._path}: {e.strerror or e}; recording goes on") from e
        self._recorder = None
        logger.info("recorded the routes of %d tokens in %s", status["tokens"], self._path)
        return status | {"recording": False, "bytes": nbytes}

    def status(self) -> dict[str, Any]:
        """Whether routes are being recorded; and if so where to, of which tags (none for all), and how many tokens."""
        recorder = self._recorder
        if recorder is None:
            return {"recording": False}
        return {
            "recording": True,
            "path": self._path,
            "only_tags": sorted(self._only),
            "seconds": round(monotonic() - self._began, 3),
            "tokens": recorder.tokens,
            "stream_tokens": recorder.stream_tokens,
        }


def _check_path(path: str, overwrite: bool) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise RequestError(f"cannot write {path}: there is no such folder, or it may not be written in", "path")
    if os.path.isdir(path) or (not overwrite and os.path.lexists(path)):
        raise RequestError(f"{path} is there already: choose another name", "path")


def _tokens_of_stream(tokens: Any, choices: int) -> int:
    """`tokens` if the stream of so many, with so many choices each, may be kept; raises RequestError otherwise."""
    most = MAX_STREAM_BYTES // (2 * choices)
    if type(tokens) is not int or not 0 <= tokens <= most:
        raise RequestError(
            f"stream_tokens must be a whole number from 0 to {most} ({MAX_STREAM_BYTES >> 20} MiB of choices of this "
            f"model), got {tokens!r}",
            "stream_tokens",
        )
    return tokens
