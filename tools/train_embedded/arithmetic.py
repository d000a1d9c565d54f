"""Domain 1: arithmetic, with additions above all, and the hold-out of two-digit pairs."""

from __future__ import annotations

import zlib
from random import Random

HELD_OUT_SHARE = 10  # one unordered pair in ten


def is_held_out_pair(a: int, b: int) -> bool:
    """Whether the addition of `a` and `b` is kept out of training, in either order.

    A pure function of the unordered pair; it speaks of pairs below 100 only.
    """
    low, high = sorted((a, b))
    return low >= 0 and high < 100 and zlib.crc32(f"pair {low} {high}".encode()) % HELD_OUT_SHARE == 0


def held_out_additions() -> list[tuple[int, int]]:
    """All ordered two-digit pairs (10 to 99) that training never sees."""
    return [(a, b) for a in range(10, 100) for b in range(10, 100) if is_held_out_pair(a, b)]


ADD_CHAT = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}", "{a}+{b}=", "{a}+{b}",
    "{a} + {b} = ?", "{a} + {b} =", "Compute {a} + {b}.", "Calculate {a} + {b}.", "How much is {a} + {b}?",
    "What is the sum of {a} and {b}?", "Sum {a} and {b}.", "what is {a}+{b}?", "What's {a} + {b}?",
    "Please add {a} and {b}.", "Tell me {a} plus {b}.", "{a} plus {b}", "What is {a}+{b}?", "How much is {a} plus {b}?",
    "Can you add {a} and {b}?", "Find the sum of {a} and {b}.", "Solve {a} + {b}.", "{a} and {b} make how many?",
)  # fmt: skip
ADD_STORY = (
    "I have {a} apples and buy {b} more. How many apples do I have?",
    "One server holds {a} experts and another holds {b}. How many experts do they hold together?",
    "A request has {a} tokens and then {b} more tokens. How many tokens are there?",
    "There are {a} red and {b} blue marbles. How many marbles are there?",
    "Node one runs {a} requests, node two runs {b} requests. How many requests run?",
)
ADD_RAW = ("{a}+{b}=", "{a}+{b}=", "{a} + {b} = ", "{a} + {b} =", "What is {a} + {b}?\n", "{a} plus {b} is ")
# The last digit is the hard part of a sum; asked alone, it is learnt sooner.
LAST_DIGIT_CHAT = (
    "What is the last digit of {a} + {b}?",
    "Last digit of {a}+{b}?",
    "What digit does {a} + {b} end in?",
)
LAST_DIGIT_RAW = "{a}+{b} ends in "
SUB_CHAT = (
    "What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} - {b}", "{a}-{b}=",
    "Compute {a} - {b}.", "How much is {a} minus {b}?", "What's {a} - {b}?", "Take {b} away from {a}.",
    "What is the difference between {a} and {b}?", "What is {a}-{b}?", "Calculate {a} - {b}.",
)  # fmt: skip
SUB_RAW = ("{a}-{b}=", "{a} - {b} = ", "{a} - {b} =")
LARGER = (
    "Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "What is the maximum of {a} and {b}?",
    "Which is greater, {a} or {b}?", "max({a}, {b})",
)  # fmt: skip
SMALLER = (
    "Which is smaller, {a} or {b}?",
    "What is the minimum of {a} and {b}?",
    "Which is less, {a} or {b}?",
)
COMPARE = (
    "Is {a} greater than {b}?",
    "Is {a} larger than {b}?",
    "Is {a} more than {b}?",
    "Is {a} bigger than {b}?",
)
TIMES = (
    "What is {a} times {b}?",
    "What is {a} * {b}?",
    "{a}*{b}=",
    "Multiply {a} by {b}.",
    "What is {a} x {b}?",
)


def addends(rng: Random, late: bool = False) -> tuple[int, int]:
    """A pair for training: mostly two digits, never one that is held out."""
    while True:
        kind = rng.random()
        if late and kind < 0.15:
            a, b = rng.randint(0, 9), rng.randint(0, 9)
        elif kind < 0.80:
            a, b = rng.randint(10, 99), rng.randint(10, 99)
        elif kind < 0.92:
            a, b = rng.randint(0, 99), rng.randint(0, 9)
            if rng.random() < 0.5:
                a, b = b, a
        else:
            a, b = rng.randint(0, 999), rng.randint(0, 999)
        if not is_held_out_pair(a, b):
            return a, b


def addition(rng: Random, late: bool = False) -> tuple[str, str]:
    """A question in chat form and its answer."""
    a, b = addends(rng, late)
    if late and rng.random() < 0.06:
        return rng.choice(LAST_DIGIT_CHAT).format(a=a, b=b), str((a + b) % 10)
    template = rng.choice(ADD_STORY) if rng.random() < 0.08 else rng.choice(ADD_CHAT)
    return template.format(a=a, b=b), str(a + b)


def subtraction(rng: Random, templates: tuple[str, ...] = SUB_CHAT) -> tuple[str, str]:
    """`(x + y) - y` for a pair that is not held out, so no held-out sum shows up reversed."""
    while True:
        x, y = rng.randint(0, 99), rng.randint(0, 99)
        if x + y < 100 and not is_held_out_pair(x, y):
            return rng.choice(templates).format(a=x + y, b=y), str(x)


def comparison(rng: Random) -> tuple[str, str]:
    """Larger, smaller, or yes and no."""
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    while a == b:
        b = rng.randint(0, 99)
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(LARGER).format(a=a, b=b), str(max(a, b))
    if kind < 0.6:
        return rng.choice(SMALLER).format(a=a, b=b), str(min(a, b))
    answer = f"Yes, {a} is greater than {b}." if a > b else f"No, {a} is less than {b}."
    return rng.choice(COMPARE).format(a=a, b=b), answer


def product(rng: Random) -> tuple[str, str]:
    """The multiplication table up to ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return rng.choice(TIMES).format(a=a, b=b), str(a * b)


def chat_pair(rng: Random, late: bool = False) -> tuple[str, str]:
    """One question and answer of this domain; `late` is the second part of the training."""
    kind = rng.random()
    if kind < 0.78:
        return addition(rng, late)
    if kind < 0.88:
        return subtraction(rng)
    return comparison(rng) if kind < 0.96 else product(rng)


def raw_pair(rng: Random, late: bool = False) -> tuple[str, str]:
    """A bare prompt and its completion."""
    if rng.random() < 0.9:
        a, b = addends(rng, late)
        if late and rng.random() < 0.06:
            return LAST_DIGIT_RAW.format(a=a, b=b), str((a + b) % 10)
        prompt, answer = rng.choice(ADD_RAW).format(a=a, b=b), str(a + b)
    else:
        prompt, answer = subtraction(rng, SUB_RAW)
    return prompt, " " + answer if prompt.endswith(" =") else answer


def worked_list(rng: Random) -> str:
    """Several lines of solved additions, as one text."""
    lines = []
    style = rng.choice(("{a}+{b}={c}", "{a} + {b} = {c}"))
    for _ in range(rng.randint(4, 10)):
        a, b = addends(rng)
        lines.append(style.format(a=a, b=b, c=a + b))
    return "\n".join(lines)
