"""Prometheus's text, read again: sums, values by label, and times out of histograms."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from moesaic.advice.figures import Times
from moesaic.core.errors import ConfigError

PREFIX = "moesaic_"


class Metrics:
    """One scrape of a moesaic server. Names are given without `moesaic_`.

    Raises:
        ConfigError: it is no scrape, or not one of moesaic.
    """

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self._samples[sample.name].append(sample)
        except (ValueError, KeyError, IndexError) as error:
            raise ConfigError(f"what it calls metrics is not Prometheus's text: {error}") from error
        if not any(name.startswith(PREFIX) for name in self._samples):
            raise ConfigError("it is not a moesaic server: none of its metrics begins with moesaic_")

    def _of(self, name: str, **labels: str) -> list[Sample]:
        found = self._samples.get(PREFIX + name, [])
        return [s for s in found if all(s.labels.get(key) == value for key, value in labels.items())]

    def total(self, name: str) -> float:
        """The sum over all labels; 0 where there is no such metric."""
        return sum(sample.value for sample in self._of(name))

    def value(self, name: str, **labels: str) -> float | None:
        """The one value with these labels; None where there is none, or no number."""
        found = [s.value for s in self._of(name, **labels) if isfinite(s.value)]
        return found[0] if found else None

    def mean(self, name: str) -> float | None:
        """Over all labels; None where there is no value."""
        found = [s.value for s in self._of(name) if isfinite(s.value)]
        return sum(found) / len(found) if found else None

    def label(self, name: str, label: str) -> str | None:
        """The label of a metric's first sample."""
        return next((sample.labels.get(label) for sample in self._of(name)), None)

    def times(self, name: str) -> Times | None:
        """What a histogram of seconds tells, over all labels; None before its first observation."""
        count = self.total(f"{name}_count")
        if not count:
            return None
        buckets: dict[float, float] = defaultdict(float)
        for sample in self._of(f"{name}_bucket"):
            buckets[float(sample.labels["le"])] += sample.value
        bounds = sorted(buckets.items())
        return Times(int(count), self.total(f"{name}_sum") / count, quantile(bounds, 0.5), quantile(bounds, 0.95))


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The value below which `share` of the observations lie, interpolated within its bucket as PromQL's
    `histogram_quantile` does; beyond the last finite bound it is that bound.

    Args:
        buckets: (upper bound, observations up to it), rising, the last bound infinite.
    """
    wanted = share * buckets[-1][1]
    for (low, below), (high, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= wanted and count > below:
            return low if high == inf else low + (high - low) * (wanted - below) / (count - below)
    return buckets[-1][0]
