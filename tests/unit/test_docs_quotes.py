"""What docs/add-an-architecture.md quotes is what lies in examples/, and all of it is quoted."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
QUOTES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-an-architecture.md").read_text(), re.DOTALL)
FILES = [*sorted((ROOT / "examples/my_pkg").glob("*.py")), ROOT / "examples/serve_my_pkg.py"]


@pytest.mark.parametrize("number", range(len(QUOTES)))
def test_each_quote_is_text_of_a_file(number):
    assert any(QUOTES[number].strip() in file.read_text() for file in FILES), QUOTES[number]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_line_of_the_files_is_quoted(file):
    quoted = {line for quote in QUOTES for line in quote.splitlines()}
    assert [line for line in file.read_text().splitlines() if line not in quoted] == []
