"""Read `facts.txt`: what the embedded model knows of Mixture-of-Experts models and of serving them."""

from __future__ import annotations

from pathlib import Path

Topic = tuple[tuple[str, ...], tuple[str, ...]]  # names, and sentences of which the first defines
Answer = tuple[str, str]


def blocks(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    """The head and the lines of each block of this kind."""
    text = (Path(__file__).parent / "facts.txt").read_text(encoding="utf-8")
    out = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines and lines[0].startswith(f"{kind}:"):
            out.append((lines[0].removeprefix(f"{kind}:").strip(), tuple(lines[1:])))
    if not out:
        raise ValueError(f"facts.txt has no block of kind {kind!r}")
    return out


TOPICS: tuple[Topic, ...] = tuple((tuple(head.split("; ")), lines) for head, lines in blocks("topic"))
QUESTIONS: tuple[Answer, ...] = tuple((head, lines[0]) for head, lines in blocks("question"))
SMALL_TALK: tuple[Answer, ...] = tuple((head, lines[0]) for head, lines in blocks("talk"))
UNKNOWN: tuple[str, ...] = blocks("unknown")[0][1]
UNKNOWN_ANSWER: str = blocks("unknown-answer")[0][1][0]
