"""Stage 4: logits and greedy tokens through the whole engine, its scheduler, chunks, batches and recorded steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from moesaic.adapt.proof.captured import FLIPS, Prompt, by_token
from moesaic.adapt.proof.compare import say
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.results import Comparison, Stage
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.llm import LLM
from moesaic.models.decoder import Decoder

CHUNKS = (11, 5, 1, 7)  # where a decoder is driven by hand
TOP_SHOWN = 5
MOST_LINES = 3  # of prompts that differ


class Ends(Protocol):
    """What serves whole sequences."""

    how: str

    def logits(self, tokens: list[int]) -> Tensor:
        """`[T, V]` of a sequence."""

    def generate(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        """The likeliest tokens after each prompt, all prompts in one batch."""


class WholeEngine:
    """The engine as it serves."""

    how = "scheduler, chunks of 24 tokens, batches, recorded steps"

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        executor = llm.llm_engine.engine.executor
        self.model: Any = executor.model

    def logits(self, tokens: list[int]) -> Tensor:
        with self._kept() as rows:
            params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
            self._finished([tokens], [params])
        return torch.cat(rows)[: len(tokens)]

    def generate(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in counts]
        outputs = self._finished(prompts, params)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _finished(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> Any:
        given: list[Any] = [{"prompt_token_ids": tokens} for tokens in prompts]
        return self.llm.generate(given, list(params), use_tqdm=False)

    @contextmanager
    def _kept(self) -> Iterator[list[Tensor]]:
        """All logits that the model gives while this is open, row after row."""
        rows: list[Tensor] = []
        compute = self.model.logits

        def kept(hidden: Tensor, wanted: Tensor | None = None) -> Tensor:
            logits: Tensor = compute(hidden, wanted)
            rows.append(logits.float().cpu().clone())
            return logits

        self.model.logits = kept
        try:
            yield rows
        finally:
            del self.model.logits


class BareDecoder:
    """A decoder without an engine around it: of models of which only some layers are loaded."""

    how = "the decoder by itself, in chunks"

    def __init__(self, model: OurModel) -> None:
        self.model = model

    def logits(self, tokens: list[int]) -> Tensor:
        return self.model.run(tokens, trace=False, chunks=CHUNKS).logits

    def generate(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        made = []
        for prompt, count in zip(prompts, counts, strict=True):
            tokens = list(prompt)
            for _ in range(count):
                tokens.append(int(self.logits(tokens)[-1].argmax()))
            made.append(tokens[len(prompt) :])
        return made


def whole_engine(path: str, spec: Any, whole_prompts: bool, **options: Any) -> WholeEngine:
    """An engine for short prompts. Raises ConfigError or CheckpointError."""
    llm = LLM(
        path,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=min(1024, spec.max_position_embeddings),
        max_num_seqs=16,
        max_num_batched_tokens=1024 if whole_prompts else 24,
        pack_cache="off",
        **options,
    )
    return WholeEngine(llm)


def end_to_end(
    ends: Ends, prompts: Sequence[Prompt], reference: str, dtype: str, tolerance: float
) -> tuple[Stage, dict[str, Any]]:
    """The stage, and what its pictures show."""
    comparisons, lines, by_position = [], [], []
    for n, prompt in enumerate(prompts):
        rows = by_token(ends.logits(prompt.tokens), prompt.logits)
        by_position.append([float(x) for x in rows])
        wrong = ~(rows <= tolerance)
        # Where numbers are rounded, nearly equal experts swap places: the bulk is compared then.
        worst = float(rows.max()) if dtype == "float32" else float(rows.quantile(1 - FLIPS[dtype]))
        comparisons.append(Comparison("logits", None, worst, tolerance, wrong=int(wrong.sum()), tokens=len(wrong)))
        if not comparisons[-1].agrees:
            lines.append(f"prompt {n}, {say(comparisons[-1])}, from position {int(wrong.nonzero()[0])} on")
    greedy, ties = _greedy(ends, prompts, tolerance, dtype)
    comparisons.append(Comparison("greedy token", None, float(len(greedy)), 0.0, counts=True))
    total = sum(len(p.tokens) - p.start + 1 for p in prompts)
    lines = _few(lines, "prompts") + _few(greedy, "prompts with other tokens")
    told = f"{sum(len(p.tokens) for p in prompts)} positions, {total} greedy tokens; {ends.how}"
    told += f"; {ties} ended at a tie" if ties else ""
    worst_of = max(c.difference for c in comparisons if c.op == "logits")
    failed = any(not c.agrees for c in comparisons)
    pictures = {"positions": by_position, "tokens": _where_they_part(ends, prompts, by_position)}
    summary = f"{told}; logits differ by {'up to' if failed else 'at most'} {worst_of:.2g}"
    return Stage(4, "failed" if failed else "passed", reference, summary, tuple(lines), tuple(comparisons)), pictures


def _few(lines: list[str], what: str) -> list[str]:
    """The first few, and how many more."""
    return lines[:MOST_LINES] + ([f"and {len(lines) - MOST_LINES} more {what}"] if len(lines) > MOST_LINES else [])


def _greedy(ends: Ends, prompts: Sequence[Prompt], tolerance: float, dtype: str) -> tuple[list[str], int]:
    """Where generated tokens are others, and how many comparisons ended where two tokens were as likely."""
    expected = [[*p.tokens[p.start :], int(p.logits[-1].argmax())] for p in prompts]
    made = ends.generate([p.tokens[: p.start] for p in prompts], [len(tokens) for tokens in expected])
    lines, ties = [], 0
    for n, (prompt, wanted, got) in enumerate(zip(prompts, expected, made, strict=True)):
        for i, (theirs, ours) in enumerate(zip(wanted, got, strict=False)):
            if theirs == ours:
                continue
            row = prompt.logits[prompt.start - 1 + i]
            gap = float(row.max() - row[ours]) / (float(row.abs().max()) or 1.0)
            if gap <= 2 * tolerance:
                ties += 1
            else:
                lines.append(
                    f"prompt {n}, generated token {i}: {ours} instead of {theirs}, whose logit is {gap:.2g} higher"
                )
            break
        else:
            if len(got) < len(wanted):
                lines.append(f"prompt {n}: the engine stopped after {len(got)} of {len(wanted)} tokens")
    return lines, ties


def _where_they_part(ends: Ends, prompts: Sequence[Prompt], by_position: list[list[float]]) -> dict[str, Any]:
    """The likeliest tokens of both, at the position where logits differ most."""
    worst = max(
        ((n, at) for n, row in enumerate(by_position) for at in range(len(row))),
        key=lambda p: _key(by_position[p[0]][p[1]]),
    )
    n, at = worst
    theirs, ours = prompts[n].logits[at], ends.logits(prompts[n].tokens)[at]
    sides = {
        side: [[int(i), float(row[i])] for i in row.topk(min(TOP_SHOWN, len(row))).indices]
        for side, row in (("reference", theirs), ("engine", ours.nan_to_num(-1e30)))
    }
    return {"prompt": n, "position": at, "difference": by_position[n][at], **sides}


def _key(x: float) -> float:
    return float("inf") if x != x else x


def decoder_of(engine: WholeEngine) -> Decoder | None:
    """The engine's model, where it is one that a spec built."""
    return engine.model if isinstance(engine.model, Decoder) else None
