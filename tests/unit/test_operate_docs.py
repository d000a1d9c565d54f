"""The operator's pages name what exists: every flag, no other flag, the tree as it is walked."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import moesaic
from moesaic.advice.branches import BRANCHES
from moesaic.advice.tree import nodes
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.server.settings import ServerArgs
from tools import make_tuning

OPERATE = Path(__file__).parents[2] / "docs" / "operate"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-]*\.)")
OF_OTHERS = {"--memory", "--prompt", "--json", "--help", "--config"}  # of verbs that are not servers, and of Prometheus


def serving_flags():
    return {f"--{f.name.replace('_', '-')}" for cls in (EngineArgs, ServerArgs) for f in fields(cls)}


@pytest.mark.parametrize("flag", sorted(serving_flags()))
def test_the_guide_has_every_flag(flag):
    guide = (OPERATE / "tuning.md").read_text().partition("## Every flag")[2]
    assert any(f"`{flag}`" in line for line in guide.splitlines() if line.startswith("| `--"))


@pytest.mark.parametrize("page", ["tuning.md", "troubleshooting.md"])
def test_no_page_names_a_flag_that_is_not_there(page):
    unknown = set(FLAG.findall((OPERATE / page).read_text())) - serving_flags() - OF_OTHERS
    assert not unknown


def test_advice_names_flags_that_are_there():
    named = {flag for node in nodes(BRANCHES) for flag in FLAG.findall(node.text)}
    assert len(named) > 10 and not named - serving_flags() - OF_OTHERS


def test_the_guide_has_the_tree():
    assert make_tuning.PAGE.read_text() == make_tuning.page(), "make docs"


def code_texts():
    """All texts in the code: constants, and the fixed parts of formatted ones."""
    for path in Path(moesaic.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_quoted_messages_are_the_codes():
    quotes = re.findall(r"^> (.+)$", (OPERATE / "troubleshooting.md").read_text(), re.MULTILINE)
    pieces = {piece.strip() for quote in quotes for piece in quote.split("…")} - {""}
    texts = "\n".join(code_texts())
    assert len(pieces) > 20
    assert not [piece for piece in pieces if piece not in texts]
