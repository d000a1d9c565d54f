"""Python as `ruff format` would have it: calls that break where they are too long, comments that wrap."""

import json
import textwrap
from collections.abc import Iterable
from math import isfinite
from typing import Any

WIDTH = 120


def literal(value: Any) -> str:
    """A JSON value as Python."""
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list | tuple):
        inside = ", ".join(map(literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    return repr(value)


def printable(text: str) -> str:
    """Text with escapes in place of what is no letter, digit, sign or space: ends of lines, codes that turn the
    direction of writing, halves of pairs that no file holds."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def docstring(text: str) -> str:
    """A line of documentation, which holds nothing that ends it."""
    return f'"""{printable(text).translate({34: 39, 92: 47})}"""'  # " and \ become ' and /


def keywords(**values: Any) -> list[str]:
    """`name=value` of each; strings that are code are wrapped as `Code`."""
    return [f"{name}={value if isinstance(value, Code) else literal(value)}" for name, value in values.items()]


class Code(str):
    """An expression."""


def call(before: str, arguments: Iterable[str], after: str = "", indent: int = 0) -> list[str]:
    """`before(arguments)after` in one line, or with an argument a line."""
    arguments = list(arguments)
    pad = " " * indent
    whole = f"{pad}{before}({', '.join(arguments)}){after}"
    if (len(whole) <= WIDTH and "\n" not in whole) or not arguments:
        return [whole]
    lines = [f"{pad}{before}("]
    inner = f"{pad}    {', '.join(arguments)}"
    one_line = len(inner) <= WIDTH and all("=" not in a and "*" not in a[:1] for a in arguments) and "\n" not in inner
    if one_line:
        return [*lines, inner, f"{pad}){after}"]
    for argument in arguments:
        lines += [f"{pad}    {line}" for line in f"{argument},".splitlines()]
    return [*lines, f"{pad}){after}"]


def comment(text: str, indent: int = 0) -> list[str]:
    """Lines of a comment."""
    pad = " " * indent + "# "
    lines = textwrap.wrap(printable(text), WIDTH - len(pad), break_long_words=False, break_on_hyphens=False)
    return [pad + line for line in lines]
