"""Windows over counts that only grow, with a clock of their own; the definitions of load; percentiles of a minute."""

import math

import numpy as np
import pytest
import torch

from moesaic.engine.recent import MOST, Recent
from moesaic.experts import load
from moesaic.experts.counting import Counting, Rows
from moesaic.experts.routing import Routing
from moesaic.experts.stats import ExpertStats
from moesaic.experts.windows import Windows


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Counted:
    """Totals of two names, changed as an engine does: told before and after."""

    def __init__(self, clock):
        self.clock = clock
        self.totals = {"": np.zeros((1, 2), np.int64)}
        self.windows = Windows(lambda: self.totals, clock)
        self.log = []  # (time, name, expert)

    def add(self, expert, name="", at=None):
        self.clock.now = self.clock.now if at is None else at
        self.windows.changing()
        self.totals.setdefault(name, np.zeros((1, 2), np.int64))[0, expert] += 1
        self.windows.changed()
        self.log.append((self.clock.now, name, expert))

    def expected(self, seconds, name=""):
        """The least and the most that a window may show: it may reach back by one interval more."""
        interval = {60: 5, 3600: 60}[seconds]
        ages = [self.clock.now - time for time, of, _ in self.log if of == name]
        return sum(age < seconds for age in ages), sum(age <= seconds + interval for age in ages)

    def shown(self, window, name=""):
        return int(self.windows.counted(window)[1][name].sum())


def test_windows_forget_what_is_old(clock):
    counted = Counted(clock)
    rng = np.random.default_rng(0)
    for _ in range(800):
        counted.add(int(rng.integers(2)), name="tag" if rng.random() < 0.1 else "", at=clock.now + rng.exponential(4.0))
        if rng.random() < 0.01:
            clock.now += rng.choice([30.0, 200.0, 5000.0])  # idle
        for window, seconds in (("1m", 60), ("1h", 3600)):
            least, most = counted.expected(seconds)
            assert least <= counted.shown(window) <= most
            if "tag" in counted.totals:
                least, most = counted.expected(seconds, "tag")
                assert least <= counted.shown(window, "tag") <= most
    assert counted.shown("start") == sum(name == "" for _, name, _ in counted.log)
    assert all(len(snapshots.kept) <= 2 * 61 for snapshots in counted.windows._snapshots.values())


def test_windows_tell_how_far_they_reach(clock):
    counted = Counted(clock)
    clock.now += 7
    assert [counted.windows.counted(window)[0] for window in ("1m", "1h", "start")] == [7, 7, 7]
    for _ in range(400):
        counted.add(0, at=clock.now + 1)
    assert 60 <= counted.windows.counted("1m")[0] <= 65
    assert counted.windows.counted("1h")[0] == counted.windows.counted("start")[0] == 407


def test_a_window_is_empty_after_idling_as_long(clock):
    counted = Counted(clock)
    counted.add(1)
    counted.add(1, at=clock.now + 3)
    clock.now += 66
    assert counted.shown("1m") == 0 and counted.shown("1h") == counted.shown("start") == 2
    clock.now += 7200
    assert counted.shown("1h") == 0 and counted.shown("start") == 2


def test_ids_that_name_no_expert_count_for_none():
    stats = ExpertStats(2, 4, torch.device("cpu"), 1)
    taps = [stats.tap(0, 4, 2), stats.tap(1, 3, 1), stats.tap(1, 4, 2, "attention")]
    taps[0].note(Routing(torch.tensor([[0, 1], [3, -1], [9, 2]], dtype=torch.int32), torch.ones(3, 2)))
    taps[1].note(Routing(torch.tensor([[2], [-7], [0]], dtype=torch.int32), torch.ones(3, 1)))  # narrower
    counting = Counting(stats)  # the third router said nothing
    counting.step([Rows(["a", "b"], 0, 2, 0), Rows(["b"], 2, 1, 0)], 3)
    assert counting.by_tag()["a"].tolist() == [[1, 1, 0, 1], [0, 0, 1, 0], [0] * 4]
    assert counting.by_tag()["b"].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0], [0] * 4]
    stats.counts += 5
    counting.step([Rows(["a"], 1, 2, 1)], 3)  # the first of two rows had been counted before
    assert stats.counts.tolist() == [[5, 5, 5, 4], [5] * 4, [5] * 4] and counting.recomputed_tokens == 1
    assert counting.by_tag()["a"].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("tokens", [[1, 1, 1, 1], [4, 0, 0, 0], [3, 1, 0, 0], [5, 2, 9, 1]])
def test_definitions(tokens):
    counts, total = np.array(tokens, np.int64), sum(tokens)
    assert load.utilization(counts) == sum(n > 0 for n in tokens) / 4
    assert load.imbalance(counts) == max(tokens) / (total / 4)
    entropy = -sum(n / total * math.log(n / total) for n in tokens if n) / math.log(4)
    assert load.entropy(counts) == pytest.approx(entropy, abs=1e-12)
    assert load.dead(counts) == [e for e, n in enumerate(tokens) if n == 0]


def test_of_nothing_nothing_is_said():
    nothing = np.zeros(3, np.int64)
    assert load.utilization(nothing) == 0 and load.imbalance(nothing) is None and load.entropy(nothing) is None
    assert load.dead(nothing) == [] and load.entropy(np.array([7])) == 1.0


def test_percentiles_of_the_last_minute(clock):
    recent = Recent(clock)
    assert recent.percentiles() == {"count": 0, "mean": None, "p50": None, "p90": None, "p95": None, "p99": None}
    for i in range(1, 101):
        recent.add(i)
    found = recent.percentiles()
    assert [found[name] for name in ("count", "mean", "p50", "p90", "p95", "p99")] == [100, 50.5, 50, 90, 95, 99]
    clock.now += 30
    recent.add(600)
    assert recent.rate() == (5050 + 600) / 60
    clock.now += 31
    assert recent.percentiles()["p50"] == recent.percentiles()["p99"] == 600
    clock.now += 30
    assert recent.percentiles()["count"] == 0 and recent.rate() == 0


def test_of_many_events_the_newest_are_kept(clock):
    recent = Recent(clock)
    for _ in range(MOST + 10):
        clock.now += 0.001
        recent.add(1)
    assert recent.percentiles()["count"] == MOST
    assert recent.rate() == pytest.approx(1000, rel=0.1) or recent.rate() == MOST
