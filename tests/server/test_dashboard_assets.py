"""The dashboard's files, without a browser: whole, small, and of this server alone."""

import re

import pytest

from moesaic.entrypoints.server.pages import FOLDER

FILES = sorted(FOLDER.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
NAMESPACE = "http://www.w3.org/2000/svg"


def imports(script):
    return set(re.findall(r'^import .* from "\./(\S+)";$', script.read_text(), re.MULTILINE))


def test_every_file_is_used():
    page = (FOLDER / "index.html").read_text()
    used = {"index.html", *re.findall(r'(?:src|href)="dashboard/([^"]+)"', page)}
    used |= set().union(*map(imports, SCRIPTS))
    assert used == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_load_nothing_from_elsewhere_and_make_no_code_of_text(path):
    text = path.read_text().replace(NAMESPACE, "")
    for word in ("http:", "https:", "//cdn", "@import", "url(", "eval(", "new Function", "innerHTML", "document.write"):
        assert word not in text, word
    assert "style=" not in text and not re.search(r"\son\w+=", text)
    assert max(map(len, text.splitlines())) <= 120 or path.suffix == ".html"


def test_ids_are_unique_and_those_that_scripts_ask_for_exist():
    page = (FOLDER / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    asked = {name for script in SCRIPTS for name in re.findall(r'\bat\("([^"]+)"\)', script.read_text())}
    assert asked and asked <= set(ids)
    labels = set(re.findall(r'(?:for|list|aria-labelledby|aria-describedby)="([^"]+)"', page))
    assert labels <= set(ids)


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in FILES) < 100_000


def test_assets_carry_the_policy(client):
    for name in ("app.js", "style.css", "icon.svg"):
        assert "script-src 'self'" in client.get(f"/dashboard/{name}").headers["content-security-policy"]
