"""Routing functions by name: modules, the current folder, entry points, and what is said where there is none."""

import sys

import pytest

from moesaic.core.errors import ConfigError, in_a_line
from moesaic.experts.function_loading import load_function

SOURCE = """
NUMBER = 3
def steer(scores, domain_tags):
    return scores
class Group:
    @staticmethod
    def steer(scores, domain_tags):
        return scores
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module in it; import's state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "my_routes.py").write_text(SOURCE)
    (tmp_path / "broken_routes.py").write_text("import my_routes\nraise RuntimeError('not today')\n")
    (tmp_path / "lacking_routes.py").write_text("import a_package_that_is_not_there\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_of_a_module_in_the_current_folder(folder):
    assert load_function("my_routes:steer").__name__ == "steer"
    assert load_function("my_routes:Group.steer").__qualname__ == "Group.steer"
    assert sys.path[-1] == str(folder)  # last: it hides nothing that is installed


@pytest.mark.parametrize(
    "name, words",
    [
        ("my_rotes:steer", "there is no module 'my_rotes', neither installed nor in"),
        ("my_routes.deeper:steer", "there is no module 'my_routes.deeper'"),
        ("my_routes:stear", "unknown name 'stear': did you mean 'steer'"),
        ("my_routes:NUMBER", "that is no function, but a value of type int"),
        ("my_routes:", "give it as module:function"),
        (":steer", "give it as module:function"),
        ("nothing_installed", "unknown routing function 'nothing_installed'"),
    ],
)
def test_what_is_not_there_is_named(folder, name, words):
    with pytest.raises(ConfigError, match=words):
        load_function(name)


def test_a_modules_own_error_stays_its_own(folder):
    with pytest.raises(RuntimeError, match="not today") as caught:
        load_function("broken_routes:steer")
    line = in_a_line(caught.value)
    assert "broken_routes" in line and "--moe-routing-func" in line and "line 2" in line
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there") as caught:
        load_function("lacking_routes:steer")
    assert "lacking_routes" in in_a_line(caught.value)


def test_entry_points_are_found_by_name(folder, monkeypatch):
    info = folder / "routes_of_others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: routes-of-others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[moesaic.routing]\nothers = my_routes:steer\nbroken = broken_routes:steer\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    assert load_function("others").__name__ == "steer"
    with pytest.raises(ConfigError, match="did you mean 'others'.*installed ones.*broken, others"):
        load_function("other")
    with pytest.raises(RuntimeError) as caught:
        load_function("broken")
    assert "entry point 'broken'" in in_a_line(caught.value)
