"""The training stream: three domains, mixed, tokenised and batched, as a pure function of seed and step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import arithmetic, prose, structured
from .arithmetic import held_out_additions, is_held_out_pair
from .structured import is_held_out_request
from .tokenizer import ASSISTANT, END, PAD, SPECIAL, SYSTEM, USER

__all__ = [
    "Batch", "Document", "documents", "held_out_additions", "is_held_out_pair", "is_held_out_request", "make_batch",
    "tokenizer_texts",
]  # fmt: skip

BUCKETS = (
    *range(8, 32, 2), *range(32, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 512, 64),
    *range(512, 1025, 128),
)  # fmt: skip
MAX_LENGTH = BUCKETS[-1]
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are moesaic.", "Be brief.", "Answer briefly.",
    "You are a small Mixture-of-Experts model.", "You are an assistant. Answer the question.", "Answer correctly.",
)  # fmt: skip

SPECIAL_TEXT = re.compile("|".join(re.escape(token) for token in SPECIAL))

Turn = tuple[str, str]
Segment = tuple[str, bool]  # text, and whether the model learns to write it


@dataclass(frozen=True)
class Document:
    """One text, in segments, with the weight of its loss."""

    domain: str
    segments: tuple[Segment, ...]
    weight: float = 1.0


def chat(domain: str, turns: list[Turn], rng: Random, weight: float = 1.0) -> Document:
    """Render turns by the chat template; only the assistant's side is learnt."""
    segments: list[Segment] = []
    if rng.random() < 0.12:
        segments.append((SYSTEM + rng.choice(SYSTEM_PROMPTS) + END, False))
    for question, answer in turns:
        segments += [(USER + question + END + ASSISTANT, False), (answer + END, True)]
    return Document(domain, tuple(segments), weight)


def mixed_turns(rng: Random) -> list[Turn]:
    """A longer conversation that wanders between the domains."""
    turns: list[Turn] = []
    for _ in range(rng.choice((2, 2, 3, 4, 6, 8, 12))):
        roll = rng.random()
        if roll < 0.50:
            question, answer = arithmetic.chat_pair(rng)
            turns.append((question, answer))
            b = rng.randint(1, 99)
            if rng.random() < 0.15 and answer.isdigit() and not is_held_out_pair(int(answer), b):
                ask = rng.choice(("Now add {b}.", "Add {b} to that.", "And plus {b}?", "Plus {b}?"))
                turns.append((ask.format(b=b), str(int(answer) + b)))
        elif roll < 0.68:
            turns.append(prose.chat_pair(rng))
        elif roll < 0.78:
            turns += prose.conversation(rng)
        elif roll < 0.92:
            turns.append(structured.chat_pair(rng))
        else:
            turns += structured.edited(rng)
    return turns


def single(rng: Random, late: bool = False) -> Document:
    """One document of one domain."""
    kind = rng.choices(KINDS, LATE_SHARES)[0] if late else pick(rng.random())
    if kind == "arithmetic chat":
        return chat("arithmetic", [arithmetic.chat_pair(rng, late)], rng, ARITHMETIC_WEIGHT)
    if kind == "arithmetic raw":
        prompt, completion = arithmetic.raw_pair(rng, late)
        return Document("arithmetic", ((prompt, False), (completion + END, True)), ARITHMETIC_WEIGHT)
    if kind == "arithmetic list":
        return Document("arithmetic", ((arithmetic.worked_list(rng) + END, True),))
    if kind == "prose chat":
        turns = prose.conversation(rng) if rng.random() < 0.1 else [prose.chat_pair(rng)]
        return chat("prose", turns, rng)
    if kind == "prose raw":
        prompt, completion = prose.raw_pair(rng)
        return Document("prose", ((prompt, False), (completion + END, True)))
    if kind == "essay":
        return Document("prose", ((prose.essay(rng) + END, True),))
    if kind == "json":
        turns = structured.edited(rng) if rng.random() < 0.06 else [structured.chat_pair(rng)]
        return chat("json", turns, rng)
    return chat("mixed", mixed_turns(rng), rng)


def pick(roll: float) -> str:
    """The kind of document of the first part of the training."""
    return next((kind for kind, limit in zip(KINDS, EARLY_LIMITS, strict=True) if roll < limit), KINDS[-1])


KINDS = ("arithmetic chat", "arithmetic raw", "arithmetic list", "prose chat", "prose raw", "essay", "json", "mixed")
EARLY_LIMITS = (0.40, 0.73, 0.735, 0.82, 0.855, 0.865, 0.965, 1.0)  # cumulative
# Prose and JSON are learnt in the first part; sums need many more examples.
LATE_SHARES = (0.40, 0.45, 0.005, 0.045, 0.015, 0.005, 0.055, 0.02)
LATE_STEP = 900  # the first step of the second part
ARITHMETIC_WEIGHT = 2.0  # its answers are two or three tokens long; prose and JSON would drown them


def packed(rng: Random, late: bool = False) -> Document:
    """Several documents after one another in one long context."""
    segments: list[Segment] = []
    target = rng.choice((1200, 1200, 2400, 3600))  # in characters: from 350 to 1000 tokens
    while sum(len(text) for text, _ in segments) < target:
        segments += single(rng, late).segments
    return Document("mixed", tuple(segments))


def documents(rng: Random, late: bool = False) -> Iterator[Document]:
    """The endless stream of documents."""
    while True:
        yield packed(rng, late) if rng.random() < 0.003 else single(rng, late)


def tokenizer_texts(seed: int, count: int = 60_000) -> Iterator[str]:
    """Texts for the tokenizer; arithmetic is left out, its digits never merge."""
    rng = Random(f"tokenizer {seed}")
    stream = documents(rng)
    for _ in range(count):
        document = next(stream)
        if document.domain != "arithmetic":
            for text, _ in document.segments:
                yield SPECIAL_TEXT.sub("\n", text)


@dataclass(frozen=True)
class Batch:
    """One step's tokens, flattened; `groups` are its rectangles in order."""

    ids: Tensor  # [T]
    valid: Tensor  # [T] float, 0 for padding
    groups: list[tuple[int, int]]
    rows: Tensor  # [N] tokens whose successor is learnt
    labels: Tensor  # [N]
    weights: Tensor  # [N] float
    domains: list[str]  # of each row


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Tokens of a document and which of them are learnt; cut at the longest bucket."""
    ids: list[int] = []
    learnt: list[bool] = []
    for text, learn in document.segments:
        # Each segment apart, as at inference, where the prompt is tokenised without its answer.
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        ids += tokens
        learnt += [learn] * len(tokens)
    return ids[:MAX_LENGTH], learnt[:MAX_LENGTH]


def make_batch(tokenizer: Tokenizer, seed: int, step: int, tokens: int) -> Batch:
    """The batch of this step: documents until `tokens` padded tokens are reached, grouped by length."""
    rng = Random(f"batch {seed} {step}")
    pad = tokenizer.token_to_id(PAD)
    buckets: dict[int, list[tuple[list[int], list[bool], Document]]] = {}
    total = 0
    for document in documents(rng, late=step >= LATE_STEP):
        ids, learnt = encode(document, tokenizer)
        length = next(b for b in BUCKETS if b >= len(ids))
        if total + length > tokens:
            break
        total += length
        buckets.setdefault(length, []).append((ids, learnt, document))

    flat: list[int] = []
    valid: list[float] = []
    groups: list[tuple[int, int]] = []
    rows: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    domains: list[str] = []
    for length in sorted(buckets):
        groups.append((len(buckets[length]), length))
        for ids, learnt, document in buckets[length]:
            start = len(flat)
            for i in range(len(ids) - 1):
                if learnt[i + 1]:
                    rows.append(start + i)
                    labels.append(ids[i + 1])
                    weights.append(document.weight)
                    domains.append(document.domain)
            flat += ids + [pad] * (length - len(ids))
            valid += [1.0] * len(ids) + [0.0] * (length - len(ids))
    return Batch(
        torch.tensor(flat), torch.tensor(valid), groups, torch.tensor(rows), torch.tensor(labels),
        torch.tensor(weights), domains,
    )  # fmt: skip
