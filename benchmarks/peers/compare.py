"""Runs every case through every peer in turn, and sets moesaic's speed against each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.protocol import Done, Work
from moesaic.entrypoints.bench.report import Figure
from moesaic.entrypoints.bench.workload import random_prompts

WARMUP_LEN = 128  # tokens of a prompt at most


@dataclass(frozen=True)
class Case:
    """One batch of equal requests. With one token of output its figure is prefill, with more it is decode."""

    batch: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        if self.output_len == 1:
            return f"prefill {self.batch}x{self.input_len}"
        return f"decode batch={self.batch} in={self.input_len} out={self.output_len}"

    @property
    def metric(self) -> str:
        return "prefill_tokens" if self.output_len == 1 else "decode_tokens"

    def speed(self, done: Done) -> float:
        """Tokens a second: of the prompts until the first tokens, or of those that follow them."""
        if self.output_len == 1:
            return self.batch * self.input_len / done.first_token_seconds
        return self.batch * (self.output_len - 1) / (done.seconds - done.first_token_seconds)


@dataclass
class Runs:
    """What one peer did with one case, run by run."""

    speeds: list[float] = field(default_factory=list)  # tokens/s
    answers: list[list[list[int]]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the floor


def compare(
    ours: Peer,
    others: list[Peer],
    cases: Sequence[Case],
    *,
    model: str,
    vocab_size: int,
    runs: int,
    seed: int,
    say: Callable[[str], None],
) -> list[Figure]:
    """The figures of every case. Another engine that fails is dropped from `others`, and `say` hears why.

    Raises:
        PeerError: `ours` failed.
    """
    figures = []
    seeds = count(seed)  # no prompt comes twice, so that no prefix cache has it
    for case in cases:
        results = {peer.name: Runs() for peer in (ours, *others)}
        for i in range(1 + runs):  # the first one warms up
            # a long prompt warms nothing up that a shorter one does not
            length = case.input_len if i else min(case.input_len, WARMUP_LEN)
            prompts = random_prompts([length] * case.batch, vocab_size, next(seeds))
            work = Work(prompts=prompts, output_len=case.output_len)
            # one run of each in turn, so that a change of the machine's pace hits all alike
            for peer in (ours, *others):
                try:
                    done = peer.run(work)
                except PeerError as error:
                    if peer is ours:
                        raise
                    say(f"{peer.name} dropped at {case.name}: {error}")
                    others.remove(peer)
                    continue
                if i > 0:
                    results[peer.name].speeds.append(case.speed(done))
                    results[peer.name].answers.append(done.token_ids)
                    if case.metric in done.shares:
                        results[peer.name].shares.append(done.shares[case.metric])
        figures += _figures(f"{model} {case.name}", case.metric, results[ours.name], others, results)
    return figures


def _figures(
    case: str, metric: str, ours: Runs, others: Sequence[Peer], results: Mapping[str, Runs]
) -> Iterator[Figure]:
    """Our speed against each other engine's, and how far both said the same; our speed alone if there is none.

    A peer's figures are compared run by run: each of ours with the one that followed it.
    """
    if ours.shares:
        yield Figure(bench="peers", case=case, metric="share", unit="share", samples=ours.shares)
    if not others:
        yield Figure(bench="peers", case=case, metric=metric, unit="tokens/s", samples=ours.speeds)
    for peer in others:
        versus, theirs = f"{case} vs {peer.version}", results[peer.name]
        yield Figure(
            bench="peers",
            case=versus,
            metric=metric,
            unit="tokens/s",
            samples=ours.speeds,
            baselines=theirs.speeds,
        )
        same = [_same(a, b) for a, b in zip(ours.answers, theirs.answers, strict=True)]
        yield Figure(bench="peers", case=versus, metric="same_tokens", unit="share", samples=same)


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens before two answers part, over a batch."""
    agreed = total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += len(a)
        agreed += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return agreed / total
