"""Write the decision tree of `moesaic advise` into docs/operate/tuning.md, between its two marks.

usage: make_tuning.py [--check]     (--check writes nothing and fails if the page is out of date)
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from moesaic.advice.branches import BRANCHES
from moesaic.advice.tree import Advice, Question

PAGE = Path(__file__).parent.parent / "docs" / "operate" / "tuning.md"
BEGIN, END = "<!-- tree: begin -->", "<!-- tree: end -->"


def tree() -> str:
    """The branches as nested lists."""
    parts = []
    for branch in BRANCHES:
        lines = [line for question in branch.questions for line in _listed(question, "", 0)]
        parts.append("\n".join([f"### {branch.name.capitalize()}", "", *lines]))
    return "\n\n".join(parts)


def _listed(node: Question | Advice, lead: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(node, Advice):
        yield f"{indent}- {lead}{node.text}"
        return
    yield f"{indent}- {lead}**{node.text}**"
    for word, child in (("yes", node.yes), ("no", node.no)):
        if child is not None:
            yield from _listed(child, f"{word}: ", depth + 1)


def page() -> str:
    """The page with the tree as it is."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tree()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if PAGE.read_text() == page() else f"{PAGE} is out of date: make docs")
    PAGE.write_text(page())
