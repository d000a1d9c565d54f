"""What an installation drags in, and that the pages which are made from the code are true to it."""

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
MOST_PACKAGES = 50
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def installed_with(name: str, seen: set[str]) -> set[str]:
    """All distributions that `name` needs here without extras, itself included."""
    if name in seen:
        return seen
    seen.add(name)
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed_with(re.sub(r"[-_.]+", "-", requirement.name).lower(), seen)
    return seen


def test_at_most_fifty_packages():
    packages = installed_with("moesaic", set())
    assert "torch" in packages and "transformers" in packages
    assert len(packages) <= MOST_PACKAGES, sorted(packages)


def test_the_reference_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_pages_compiles(page):
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), start=1):
        compile(code, f"{page.name}, block {number}", "exec")
