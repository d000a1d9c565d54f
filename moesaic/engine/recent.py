"""What happened in the last minute, for pages that show percentiles without a Prometheus beside them."""

from collections import deque
from collections.abc import Callable
from time import monotonic

SECONDS = 60.0
MOST = 4096  # events that are kept: of more, the newest
PERCENTILES = (50, 90, 95, 99)


class Recent:
    """Numbers with the time at which each came.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._events: deque[tuple[float, float]] = deque(maxlen=MOST)

    def add(self, value: float) -> None:
        """Something happened now."""
        self._events.append((self._clock(), value))

    def values(self) -> list[float]:
        """Those of the last minute, oldest first."""
        since = self._clock() - SECONDS
        while self._events and self._events[0][0] < since:
            self._events.popleft()
        return [value for _, value in self._events]

    def rate(self) -> float:
        """Their sum by second, over the minute, or what of it has passed since the oldest that is kept."""
        values = self.values()
        if not values:
            return 0.0
        full = len(self._events) == MOST
        return sum(values) / max(1.0, self._clock() - self._events[0][0] if full else SECONDS)

    def percentiles(self) -> dict[str, float | int | None]:
        """`count`, `mean`, and the nearest-rank percentiles `p50` to `p99`; None where nothing happened."""
        values = sorted(self.values())
        if not values:
            return {"count": 0, "mean": None, **{f"p{p}": None for p in PERCENTILES}}
        ranks = {f"p{p}": values[-(-p * len(values) // 100) - 1] for p in PERCENTILES}
        return {"count": len(values), "mean": sum(values) / len(values), **ranks}
