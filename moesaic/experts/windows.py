"""What was counted in the last minute, in the last hour and since the start, from totals that only grow.

Of each window a few snapshots of the totals are kept, and what it counted is the difference between now and the
newest one that is old enough: a window may reach back by one interval more than its length. Nothing is done for
tokens, only now and then for a snapshot, and memory does not grow.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moesaic.experts.load import Counts

Totals = Mapping[str, Counts]


@dataclass(frozen=True)
class Window:
    """How far back, and how often a snapshot is taken for it; in seconds."""

    seconds: float
    interval: float


WINDOWS = {"1m": Window(60.0, 5.0), "1h": Window(3600.0, 60.0)}
START = "start"
NAMES = (*WINDOWS, START)


@dataclass
class _Snapshots:
    window: Window
    kept: deque[tuple[float, Totals]] = field(default_factory=deque)

    @property
    def next(self) -> float:
        """When another is wanted."""
        return self.kept[-1][0] + self.window.interval

    def take(self, time: float, totals: Totals) -> None:
        """Keep the totals as they have been since `time`."""
        last = self.kept[-1][1]
        self.kept.append((time, {name: _same_or_copy(last.get(name), array) for name, array in totals.items()}))

    def before(self, time: float) -> tuple[float, Totals]:
        """The newest that is no younger than the window at `time`, or the oldest there is; older ones are dropped."""
        while len(self.kept) > 1 and self.kept[1][0] <= time - self.window.seconds:
            self.kept.popleft()
        return self.kept[0]


def _same_or_copy(last: Counts | None, now: Counts) -> Counts:
    return last if last is not None and np.array_equal(last, now) else now.copy()


class Windows:
    """Windows over named arrays of totals.

    Args:
        totals: gives them as they are; names may come, and none may go.
        clock: monotonic seconds.
    """

    def __init__(self, totals: Callable[[], Totals], clock: Callable[[], float]) -> None:
        self._totals, self._clock = totals, clock
        self._start = self._changed = clock()
        zero = {name: array.copy() for name, array in totals().items()}
        self._snapshots = {name: _Snapshots(window, deque([(self._start, zero)])) for name, window in WINDOWS.items()}
        self._next = min(snapshots.next for snapshots in self._snapshots.values())

    def changing(self) -> None:
        """Totals are about to change, as they did not since the last `changed`."""
        now = self._clock()
        if now < self._next:
            return
        for snapshots in self._snapshots.values():
            if now >= snapshots.next and self._changed > snapshots.kept[-1][0]:
                snapshots.take(self._changed, self._totals())
                snapshots.before(now)
        self._next = min(snapshots.next for snapshots in self._snapshots.values())

    def changed(self) -> None:
        """Totals have changed."""
        self._changed = self._clock()

    def counted(self, window: str) -> tuple[float, Totals]:
        """How many seconds a window reaches back, and what was counted in them.

        Args:
            window: one of NAMES.
        """
        now, totals = self._clock(), self._totals()
        if window == START:
            return now - self._start, totals
        self.changing()
        since, base = self._snapshots[window].before(now)
        seconds = min(now - since, WINDOWS[window].seconds + WINDOWS[window].interval)
        return seconds, {name: array - base[name] if name in base else array for name, array in totals.items()}
