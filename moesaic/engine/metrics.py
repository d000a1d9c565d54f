"""What Prometheus reads at /metrics: the engine's counters, and times as clients feel them."""

from dataclasses import dataclass
from time import monotonic

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from moesaic.core.messages import EngineInfo, EngineStats
from moesaic.core.outputs import RequestOutput
from moesaic.core.request import SequenceUpdate

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# metric, its help, and the field of EngineStats that it follows
GAUGES = (
    ("num_requests_running", "Sequences in the running batch.", "num_running"),
    ("num_requests_waiting", "Sequences that wait for a place or for blocks.", "num_waiting"),
    ("kv_blocks_used", "KV-cache blocks that sequences hold.", "kv_blocks_used"),
    ("kv_blocks", "KV-cache blocks in all.", "kv_blocks_total"),
    ("state_slots_used", "Slots of recurrent state that sequences hold.", "state_slots_used"),
    ("state_checkpoints", "Slots with recurrent state that a later prompt may start from.", "state_checkpoints"),
    ("state_slots", "Slots of recurrent state in all; 0 for models without any.", "state_slots_total"),
)
COUNTERS = (
    ("preemptions", "Sequences that lost their blocks and were computed again.", "preemptions_total"),
    ("prefix_cache_queries_tokens", "Prompt tokens looked up in the prefix cache.", "prefix_queries_total"),
    ("prefix_cache_hits_tokens", "Prompt tokens found in the prefix cache.", "prefix_hits_total"),
    (
        "computed_tokens",
        "Tokens that went through the model, recomputed ones included.",
        "computed_tokens_total",
    ),
    ("steps", "Engine steps.", "steps_total"),
    ("step_seconds", "Time in engine steps.", "step_seconds_total"),
    ("forward_seconds", "Of this, time inside the model.", "forward_seconds_total"),
)


@dataclass(slots=True)
class _Times:
    """When a request arrived and was last heard of."""

    arrival: float
    last_token: float | None = None


class Metrics:
    """Collects; `render` gives the text that Prometheus scrapes."""

    def __init__(self, info: EngineInfo) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._last = EngineStats()
        self._times: dict[str, _Times] = {}
        self._gauges = [(self._gauge(name, text), field) for name, text, field in GAUGES]
        self._counters = [(self._counter(name, text), field) for name, text, field in COUNTERS]
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests that gave a first token.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._finished = Counter(
            "moesaic_requests_finished",
            "Completions that ended, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._first_token = self._histogram("time_to_first_token", "From arrival to the first token.")
        self._inter_token = self._histogram("inter_token_latency", "Between two tokens of a completion.")
        self._end_to_end = self._histogram("request_latency", "From arrival to the last token.")
        build = Gauge(
            "moesaic_info",
            "What is served.",
            ["model", "architecture", "dtype", "device"],
            registry=self._registry,
        )
        build.labels(info.names[0], info.architecture, info.dtype, info.device).set(1)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"moesaic_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"moesaic_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"moesaic_{name}_seconds", text, buckets=SECONDS, registry=self._registry)

    def arrive(self, request_id: str) -> None:
        """A request was accepted."""
        self._times[request_id] = _Times(monotonic())

    def forget(self, request_id: str) -> None:
        """A request ended without a last token."""
        if self._times.pop(request_id, None) is not None:
            self._finished.labels("abort").inc()

    def observe_step(self, stats: EngineStats, updates: list[SequenceUpdate], outputs: list[RequestOutput]) -> None:
        """Book one step."""
        for gauge, field in self._gauges:
            gauge.set(getattr(stats, field))
        for counter, field in self._counters:
            counter.inc(getattr(stats, field) - getattr(self._last, field))
        self._last = stats
        self._generated.inc(sum(len(update.new_token_ids) for update in updates))
        now = monotonic()
        for output in outputs:
            self._observe(output, now)

    def _observe(self, output: RequestOutput, now: float) -> None:
        times = self._times.get(output.request_id)
        if times is None:
            return
        if times.last_token is None:
            self._prompt.inc(len(output.prompt_token_ids))
            self._first_token.observe(now - times.arrival)
        else:
            self._inter_token.observe(now - times.last_token)
        times.last_token = now
        if output.finished:
            self._end_to_end.observe(now - times.arrival)
            for completion in output.outputs:
                self._finished.labels(completion.finish_reason).inc()
            del self._times[output.request_id]

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
