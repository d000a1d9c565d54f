"""Write docs/reference.md: every engine argument and sampling parameter, from where they are defined.

usage: make_reference.py [--check]     (--check writes nothing and fails if the page is out of date)
"""

import sys
from dataclasses import MISSING, Field, fields
from inspect import getdoc
from pathlib import Path

from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD = """# Reference

This page is made from the code by `make docs`; edit the docstrings instead.
"""


def default_of(field: Field) -> str:
    """The default as Python writes it."""
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    return f"`{field.default_factory()!r}`" if field.default_factory is not MISSING else ""


def engine_arguments() -> str:
    """A table of EngineArgs: `LLM(...)`, `EngineArgs(...)` and the command line."""
    rows = ["| argument | flag | default | meaning |", "|---|---|---|---|"]
    for field in fields(EngineArgs):
        choices = field.metadata["choices"]
        meaning = field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        rows.append(f"| `{field.name}` | `--{field.name.replace('_', '-')}` | {default_of(field)} | {meaning} |")
    return "\n".join(rows)


def sampling_parameters() -> str:
    """A table of SamplingParams with their defaults, and the docstring that explains them."""
    rows = ["| parameter | default |", "|---|---|"]
    rows += [f"| `{field.name}` | {default_of(field)} |" for field in fields(SamplingParams)]
    return "\n".join(rows) + f"\n\n```text\n{getdoc(SamplingParams)}\n```"


def page() -> str:
    """The whole page."""
    return (
        f"{HEAD}\n## Engine arguments\n\nFor `LLM(...)`, `EngineArgs(...)`, `moesaic serve` and its siblings.\n\n"
        f"{engine_arguments()}\n\n## Sampling parameters\n\n{sampling_parameters()}\n"
    )


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            None if PAGE.exists() and PAGE.read_text() == page() else "docs/reference.md is out of date: make docs"
        )
    PAGE.write_text(page())
