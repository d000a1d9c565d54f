"""Open questions settled by a reference: the answers are kept that reproduce its logits."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, islice, product
from typing import Any

from moesaic.adapt.draft.drafting import SAME, Draft, Drafter
from moesaic.adapt.draft.oracle import Oracle, Reference
from moesaic.adapt.draft.questions import Question

EXACT = 1e-4  # a relative difference that only rounding leaves: no better answer is looked for
APART = 5.0  # an answer is settled where every other one is so many times farther off
Questions = Mapping[str, Question]


class Search:
    """Tries answers, each combination once.

    Attributes:
        best, difference: the questions with the best answers so far, and how far off they are.
    """

    def __init__(self, drafter: Drafter, oracle: Oracle, max_runs: int) -> None:
        self._drafter, self._oracle, self._left = drafter, oracle, max_runs
        self._seen: dict[str, float] = {}
        self.best: dict[str, Question] = dict(drafter.questions)
        self.difference = self.run(self.best)

    def run(self, questions: Questions) -> float:
        """How far off the logits are with these answers; infinite when no runs are left."""
        source, _ = self._drafter.write(questions)
        code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("#"))
        if code not in self._seen:
            if self._left <= 0:
                return float("inf")
            self._left -= 1
            self._seen[code] = self._oracle.difference(source)
        return self._seen[code]

    def try_all(self, candidates: Iterator[dict[str, Question]]) -> None:
        """Keep the best of these, until one is exact."""
        for questions in candidates:
            if self.difference <= EXACT or self._left <= 0:
                return
            difference = self.run(questions)
            if difference < self.difference:
                self.best, self.difference = questions, difference

    def descend(self, names: list[str], together: int) -> None:
        """Change so many answers at a time for the better, for as long as that helps."""
        before = float("inf")
        while EXACT < self.difference < before and self._left > 0:
            before = self.difference
            for some in combinations(names, together):
                self.try_all(_combined(self.best, some))


def _combined(questions: Questions, names: tuple[str, ...] | list[str]) -> Iterator[dict[str, Question]]:
    """All answers to these questions, the likeliest first."""
    options = [(questions[n].choice, *questions[n].others) for n in names]
    ranked = sorted(product(*(range(len(o)) for o in options)), key=lambda ranks: (sum(ranks), ranks))
    for ranks in ranked:
        chosen = {n: questions[n].took(o[rank]) for n, o, rank in zip(names, options, ranks, strict=True)}
        yield {**questions, **chosen}


def settle(drafter: Drafter, reference: str, max_runs: int) -> Draft:
    """The draft whose answers reproduce the reference's logits, as far as there are such.

    Raises:
        CheckpointError, ConfigError: the reference cannot be read, or the model cannot be run here.
    """
    if drafter.structure.by_hand:
        return drafter.draft()
    oracle = Oracle(drafter.survey.path, drafter.config, Reference(reference))
    search = Search(drafter, oracle, max_runs)
    asked = [q.name for q in search.best.values() if q.others]
    unsure = [name for name in asked if search.best[name].open]
    search.try_all(islice(_combined(search.best, unsure), max_runs // 2))
    search.descend(asked, 1)
    search.descend(asked, 2)
    if search.difference > SAME:
        return drafter.draft(search.best, search.difference)
    settled = {name: _judged(search, name) for name in search.best}
    return drafter.draft(settled, search.difference)


def _judged(search: Search, name: str) -> Question:
    """A question of the best answers, settled where the reference tells this answer from all others."""
    q = search.best[name]
    if not q.guessed:
        return q
    off = {other: search.run({**search.best, name: q.took(other)}) for other in q.others}
    as_good: list[Any] = [other for other, d in off.items() if d <= max(SAME, APART * search.difference)]
    if as_good:
        return replace(
            q, evidence=f"{q.evidence}; the reference is reproduced as well by {', '.join(map(str, as_good))}"
        )
    least = min(off.values(), default=float("inf"))
    beside = f"; else it is off by {least:.2g}" if least < float("inf") else ""
    return replace(q, evidence=f"so the reference is reproduced{beside}", settled=True)
