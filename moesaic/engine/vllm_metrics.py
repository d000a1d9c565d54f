"""vLLM's names for our figures, so that boards made for it work: `--metrics-aliases vllm`.

A family is read from our registry whenever it is scraped, and given another name, vLLM's labels, and where vLLM counts
in milliseconds, that unit.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# our family -> vLLM's, and what values are multiplied by
NAMES = {
    "num_requests_running": ("vllm:num_requests_running", 1),
    "num_requests_waiting": ("vllm:num_requests_waiting", 1),
    "kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", 1),  # 1 is full, whatever the name says
    "preemptions": ("vllm:num_preemptions", 1),
    "prompt_tokens": ("vllm:prompt_tokens", 1),
    "generation_tokens": ("vllm:generation_tokens", 1),
    "prefix_cache_queries_tokens": ("vllm:prefix_cache_queries", 1),
    "prefix_cache_hits_tokens": ("vllm:prefix_cache_hits", 1),
    "requests_finished": ("vllm:request_success", 1),
    "time_to_first_token_seconds": ("vllm:time_to_first_token_seconds", 1),
    "inter_token_latency_seconds": ("vllm:inter_token_latency_seconds", 1),
    "request_latency_seconds": ("vllm:e2e_request_latency_seconds", 1),
    "request_queue_time_seconds": ("vllm:request_queue_time_seconds", 1),
    "request_prefill_time_seconds": ("vllm:request_prefill_time_seconds", 1),
    "request_decode_time_seconds": ("vllm:request_decode_time_seconds", 1),
    "moe_expert_utilization": ("vllm_moe_expert_utilization", 1),
    "moe_routing_latency_seconds": ("vllm_moe_routing_latency_ms", 1000),
    "moe_token_imbalance": ("vllm_moe_token_imbalance", 1),
    "moe_memory_fragmentation": ("vllm_moe_memory_fragmentation", 1),
}
LABELS = {"reason": "finished_reason"}


class VllmNames(Collector):
    """The families of NAMES out of another registry.

    Args:
        model: served; vLLM's boards choose by the label `model_name`.
    """

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._labels = {"engine": "0", "model_name": model}

    def describe(self) -> list[Metric]:
        """Nothing is claimed before it is scraped."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families as they are now."""
        for ours in self._registry.collect():
            name, factor = NAMES.get(ours.name.removeprefix("moesaic_"), ("", 1))
            if name:
                theirs = Metric(name, ours.documentation, ours.type)
                theirs.samples = [self._renamed(sample, ours.name, name, factor) for sample in ours.samples]
                yield theirs

    def _renamed(self, sample: Sample, old: str, new: str, factor: float) -> Sample:
        labels = {LABELS.get(label, label): value for label, value in sample.labels.items()}
        if "le" in labels and factor != 1:
            labels["le"] = str(float(labels["le"]) * factor).replace("inf", "+Inf")
        counts = sample.name.endswith(("_bucket", "_count"))
        value = sample.value if counts else sample.value * factor
        return Sample(sample.name.replace(old, new, 1), self._labels | labels, value)
