"""Imports point down, architectures keep to their files, and these files stay short.

The order is that of the layout in docs/architecture.md, read from its bottom, with one exception: `models.spec` is
vocabulary. It is torch-free data that imports nothing but `core`, and layers and experts build themselves from it; it
lies with the models because that is where a reader looks for it. (Function-level imports count like any other.)
"""

import ast
import re
from pathlib import Path

import pytest

import moesaic

PACKAGE = Path(moesaic.__file__).parent
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "archs" not in p.relative_to(PACKAGE).parts[:-1])
ARCHS = sorted(p for p in (PACKAGE / "models" / "archs").glob("*.py") if p.stem != "__init__")
ORDER = (
    "core", "kernels", "distributed", "weights", "layers", "experts", "models", "worker", "scheduler", "engine",
    "adapt", "advice", "entrypoints",
)  # fmt: skip
VOCABULARY = "moesaic.models.spec"
LISTS_OF_NAMES = [
    PACKAGE / "models" / "hf_backend" / name for name in ("allowed.py", "kinds.py")
]  # some are ours as well


def imports(path):
    """(line, dotted name) of every import of ours in a file, wherever in it."""
    package = ".".join(("moesaic", *path.relative_to(PACKAGE).parts[:-1]))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; {package} imports by full name"
            # `from moesaic.models import spec` names a module as much as `from moesaic.models.spec import x`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "moesaic")


def rank(name):
    """Place in ORDER of the package that a dotted name lies in; the vocabulary's is core's."""
    if name == VOCABULARY or name.startswith(VOCABULARY + "."):
        return 0
    parts = name.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("path", [*SOURCES, *ARCHS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    module = ".".join(("moesaic", *path.relative_to(PACKAGE).with_suffix("").parts))
    own = rank(module)
    if own is None:  # moesaic/__init__.py and the embedded model's data
        return
    wrong = [f"line {line}: {name}" for line, name in imports(path) if (rank(name) or 0) > own]
    assert not wrong, f"{module} imports from above itself: {wrong}"


def test_every_package_has_its_place():
    found = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} - {"embedded"}
    assert found <= set(ORDER)


def words_of_code(path):
    """(line, text) of every name and string that a file's code consists of: comments and docstrings are prose."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    }
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "module", "value"):
            text = getattr(node, field, None)
            if isinstance(text, str) and id(node) not in docstrings:
                yield node.lineno, text


def test_no_architecture_is_named_outside_its_file():
    names = {}
    for arch in ARCHS:
        names[arch.stem] = arch
        names[re.search(r'ARCHITECTURE = "(\w+)"', arch.read_text()).group(1)] = arch
    word = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(map(re.escape, names))})(?![A-Za-z0-9_])")
    wrong = [
        f"{path}:{line}: {name}"
        for path in [*SOURCES, *ARCHS]
        if path not in LISTS_OF_NAMES
        for line, text in words_of_code(path)
        for name in word.findall(text)
        if names[name] != path
    ]
    assert not wrong


@pytest.mark.parametrize("path", ARCHS, ids=lambda p: p.stem)
def test_an_architecture_takes_under_a_hundred_lines(path):
    assert len(path.read_text().splitlines()) < 100
