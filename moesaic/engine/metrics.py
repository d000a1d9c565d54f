"""What Prometheus reads at /metrics: the engine's counters, what its experts do, and times as clients feel them."""

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

from moesaic.core.messages import EngineInfo, EngineStats, MoeSummary
from moesaic.core.outputs import RequestOutput
from moesaic.core.request import SequenceUpdate
from moesaic.engine.metric_names import COUNTERS, GAUGES, HISTOGRAMS, LAYER_GAUGES, ROUTING_SECONDS, SECONDS
from moesaic.engine.recent import Recent
from moesaic.engine.vllm_metrics import VllmNames


@dataclass(slots=True)
class _Times:
    """When a request arrived, how long it waited, and when it gave its first and its latest token."""

    arrival: float
    queue: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0


class Metrics:
    """Collects; `render` gives the text that Prometheus scrapes.

    Attributes:
        recent: the last minute of each histogram, of steps' seconds, and of prompt and generated tokens, by name.
        finished: completions that ended, by reason.
        prompt_tokens, generated_tokens: since the start.
        moe: the latest figures of the experts.
    """

    def __init__(self, info: EngineInfo) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._aliases: list[CollectorRegistry] = []
        self._model = info.names[0]
        self._last = EngineStats()
        self._times: dict[str, _Times] = {}
        self.moe: MoeSummary | None = None
        self.finished: dict[str, int] = {}
        self.prompt_tokens = self.generated_tokens = 0
        self._gauges = [(self._gauge(name, text), field) for name, text, field in GAUGES]
        self._counters = [(self._counter(name, text), field) for name, text, field in COUNTERS]
        self._kv_usage = self._gauge("kv_cache_usage_ratio", "Share of the KV cache's blocks that sequences hold.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests that gave a first token.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._finished = Counter(
            "moesaic_requests_finished", "Completions that ended, by reason.", ["reason"], registry=self._registry
        )
        self._histograms = {name: self._histogram(name, text, SECONDS) for name, text in HISTOGRAMS}
        self._histograms["moe_routing_latency"] = self._histogram(
            "moe_routing_latency", "Of a step, choosing experts in all layers.", ROUTING_SECONDS
        )
        self._moe = _MoeMetrics(self._registry)
        self.recent = {name: Recent() for name in (*self._histograms, "step", "prompt_tokens", "generation_tokens")}
        build = Gauge(
            "moesaic_info", "What is served.", ["model", "architecture", "dtype", "device"], registry=self._registry
        )
        build.labels(self._model, info.architecture, info.dtype, info.device).set(1)

    def add_vllm_names(self) -> None:
        """Export what vLLM's boards draw by vLLM's names too."""
        registry = CollectorRegistry()
        registry.register(VllmNames(self._registry, self._model))
        self._aliases = [registry]

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"moesaic_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"moesaic_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"moesaic_{name}_seconds", text, buckets=buckets, registry=self._registry)

    def arrive(self, request_id: str) -> None:
        """A request was accepted."""
        self._times[request_id] = _Times(monotonic())

    def forget(self, request_id: str) -> None:
        """A request ended without a last token."""
        if self._times.pop(request_id, None) is not None:
            self._finish("abort")

    def observe_step(
        self,
        stats: EngineStats,
        updates: list[SequenceUpdate],
        outputs: list[RequestOutput],
        moe: MoeSummary | None = None,
    ) -> None:
        """Book one step."""
        for gauge, field in self._gauges:
            gauge.set(getattr(stats, field))
        for counter, field in self._counters:
            counter.inc(getattr(stats, field) - getattr(self._last, field))
        self._kv_usage.set(stats.kv_blocks_used / max(1, stats.kv_blocks_total))
        if stats.steps_total > self._last.steps_total:
            self.recent["step"].add(stats.step_seconds_total - self._last.step_seconds_total)
        if stats.routing_seconds_total > self._last.routing_seconds_total:
            self._observe("moe_routing_latency", stats.routing_seconds_total - self._last.routing_seconds_total)
        self._last = stats
        if moe is not None:
            self.observe_moe(moe)
        self._count_tokens(updates)
        now = monotonic()
        for output in outputs:
            self._observe_output(output, now)

    def observe_moe(self, moe: MoeSummary) -> None:
        """Follow the experts; what is older than what is known is left."""
        if self.moe is None or moe.time > self.moe.time:
            self.moe = moe
            self._moe.set(moe)

    def _count_tokens(self, updates: list[SequenceUpdate]) -> None:
        generated = sum(len(update.new_token_ids) for update in updates)
        if generated:
            self._generated.inc(generated)
            self.generated_tokens += generated
            self.recent["generation_tokens"].add(generated)
        for update in updates:
            times = self._times.get(update.request_id)
            if update.queue_seconds is not None and update.index == 0 and times is not None:
                times.queue = update.queue_seconds
                self._observe("request_queue_time", update.queue_seconds)

    def _observe(self, name: str, seconds: float) -> None:
        self._histograms[name].observe(seconds)
        self.recent[name].add(seconds)

    def _observe_output(self, output: RequestOutput, now: float) -> None:
        times = self._times.get(output.request_id)
        if times is None:
            return
        if times.first_token is None:
            times.first_token = now
            prompt_tokens = len(output.prompt_token_ids)
            self._prompt.inc(prompt_tokens)
            self.prompt_tokens += prompt_tokens
            self.recent["prompt_tokens"].add(prompt_tokens)
            self._observe("time_to_first_token", now - times.arrival)
            self._observe("request_prefill_time", max(0.0, now - times.arrival - times.queue))
        else:
            self._observe("inter_token_latency", now - times.last_token)
        times.last_token = now
        if output.finished:
            self._observe("request_latency", now - times.arrival)
            self._observe("request_decode_time", now - times.first_token)
            for completion in output.outputs:
                self._finish(completion.finish_reason or "error")
            del self._times[output.request_id]

    def _finish(self, reason: str) -> None:
        self._finished.labels(reason).inc()
        self.finished[reason] = self.finished.get(reason, 0) + 1

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return b"".join(map(generate_latest, (self._registry, *self._aliases))), CONTENT_TYPE_LATEST


class _MoeMetrics:
    """Figures of the last minute, by layer: never by expert, of which there are too many."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["layer", "part"]
        self._layers = {
            field: Gauge(f"moesaic_moe_{name}", text, labels, registry=registry) for name, text, field in LAYER_GAUGES
        }
        self._tokens = Counter(
            "moesaic_moe_expert_tokens",
            "Choices of experts, of tokens when they were first computed; one with k experts counts k times.",
            labels,
            registry=registry,
        )
        self._recomputed = Counter(
            "moesaic_moe_recomputed_tokens",
            "Tokens computed again after a preemption, which no other count of experts has twice.",
            registry=registry,
        )
        self._fragmentation = Gauge(
            "moesaic_moe_memory_fragmentation",
            "Share of allocated memory that holds nothing: of used KV blocks, and of expert pages.",
            ["kind"],
            registry=registry,
        )
        self._expert_bytes = Gauge("moesaic_moe_expert_bytes", "Memory of expert pages.", registry=registry)
        self._before = MoeSummary(0.0, 0.0, [])

    def set(self, moe: MoeSummary) -> None:
        """Follow a summary. Figures of what did not happen are left out."""
        before = {(layer.layer, layer.part): layer.tokens_total for layer in self._before.layers}
        for layer in moe.layers:
            labels = str(layer.layer), layer.part
            for field, gauge in self._layers.items():
                _set(gauge, getattr(layer, field), labels)
            self._tokens.labels(*labels).inc(layer.tokens_total - before.get((layer.layer, layer.part), 0))
        self._recomputed.inc(moe.recomputed_tokens_total - self._before.recomputed_tokens_total)
        _set(self._fragmentation, moe.kv_fragmentation, ("kv",))
        _set(self._fragmentation, moe.expert_fragmentation, ("experts",))
        self._expert_bytes.set(moe.expert_bytes)
        self._before = moe


def _set(gauge: Gauge, value: float | None, labels: tuple[str, ...]) -> None:
    """Set a labelled gauge, or take it away."""
    if value is not None:
        gauge.labels(*labels).set(value)
    elif labels in gauge._metrics:
        gauge.remove(*labels)
