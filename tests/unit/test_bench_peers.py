"""How peers are compared; the engines are stand-ins here."""

from dataclasses import dataclass, field, replace

import pytest

from benchmarks.peers.compare import Case, compare
from benchmarks.peers.process import PeerError
from benchmarks.peers.protocol import Done, Work

DECODE = Case(batch=2, input_len=3, output_len=5)


@dataclass
class FakePeer:
    """Takes a second for the prompts and `seconds` for each later token, and writes into a common log."""

    name: str
    seconds: float
    log: list[tuple[str, Work]]
    fails_at: int = -1
    version: str = field(init=False)

    def __post_init__(self) -> None:
        self.version = f"{self.name}-1"

    def run(self, work: Work) -> Done:
        if self.fails_at == sum(name == self.name for name, _ in self.log):
            raise PeerError("out of memory")
        self.log.append((self.name, work))
        decode = self.seconds * (work.output_len - 1)
        answers = [[prompt[0]] * work.output_len for prompt in work.prompts]
        return Done(seconds=1.0 + decode, first_token_seconds=1.0, token_ids=answers)


def run(ours, others, cases=(DECODE,), runs=2):
    said: list[str] = []
    figures = compare(ours, others, cases, model="m", vocab_size=50, runs=runs, seed=0, say=said.append)
    return figures, said


def test_peers_take_turns_on_the_same_prompts() -> None:
    log: list[tuple[str, Work]] = []
    run(FakePeer("moesaic", 0.1, log), [FakePeer("a", 0.2, log), FakePeer("b", 0.4, log)])
    assert [name for name, _ in log] == ["moesaic", "a", "b"] * 3  # a warm-up, then two that count
    prompts = [work.prompts for _, work in log]
    assert prompts[0] == prompts[1] == prompts[2] != prompts[3]


def test_the_baseline_is_the_peers_speed() -> None:
    log: list[tuple[str, Work]] = []
    figures, _ = run(FakePeer("moesaic", 0.1, log), [FakePeer("a", 0.2, log)])
    speed, same = figures
    assert speed.value == pytest.approx(20) and speed.baseline == pytest.approx(10)  # 2 sequences
    assert speed.ratio == pytest.approx(2) and len(speed.samples) == 2
    assert speed.case == "m decode batch=2 in=3 out=5 vs a-1"
    assert (same.metric, same.value) == ("same_tokens", 1.0)


def test_a_share_of_the_floor_is_reported() -> None:
    class Measuring(FakePeer):
        def run(self, work: Work) -> Done:
            return replace(super().run(work), shares={"decode_tokens": 0.75, "prefill_tokens": 0.5})

    figures, _ = run(Measuring("moesaic", 0.1, []), [FakePeer("a", 0.2, [])])
    assert [(f.metric, f.value) for f in figures[:1]] == [("share", 0.75)]
    assert "vs" not in figures[0].case


def test_one_token_of_output_measures_prefill() -> None:
    (figure,), _ = run(FakePeer("moesaic", 0.1, []), [], [Case(batch=1, input_len=7, output_len=1)])
    assert (figure.metric, figure.value, figure.baseline) == ("prefill_tokens", pytest.approx(7), None)


def test_a_peer_that_fails_is_dropped_with_its_reason() -> None:
    log: list[tuple[str, Work]] = []
    others = [FakePeer("a", 0.2, log, fails_at=1), FakePeer("b", 0.2, log)]
    figures, said = run(FakePeer("moesaic", 0.1, log), others, [DECODE, DECODE])
    assert said == ["a dropped at decode batch=2 in=3 out=5: out of memory"]
    assert {figure.case.rpartition(" ")[2] for figure in figures} == {"b-1"}


def test_ours_must_not_fail() -> None:
    with pytest.raises(PeerError, match="out of memory"):
        run(FakePeer("moesaic", 0.1, [], fails_at=0), [])
