"""Finding the architecture of a config: built in, registered, from a plugin, or not known."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from moesaic.core.errors import ConfigError, UnsupportedError, in_a_line
from moesaic.models import registry
from moesaic.models.registry import ModelRegistry

FIVE = {"GraniteMoeForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM"}


@pytest.fixture
def clean(monkeypatch):
    """Registrations of a test end with it."""
    monkeypatch.setattr(ModelRegistry, "_targets", dict(ModelRegistry._targets))
    monkeypatch.setattr(ModelRegistry, "_by_hand", {})
    monkeypatch.setattr(ModelRegistry, "_left_behind", set())


@pytest.fixture
def plugins(monkeypatch, clean):
    """A list of entry points that stands for the installed ones."""
    found = []
    registry._load_builtin_and_plugins.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    yield found
    registry._load_builtin_and_plugins.cache_clear()


def test_the_five_families_are_known():
    assert set(ModelRegistry.get_supported_archs()) >= FIVE


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(UnsupportedError) as e:
        ModelRegistry.resolve({"architectures": ["MixtralForCausalML"]})
    message = str(e.value)
    assert "'MixtralForCausalML' is not supported" in message
    assert message.index("MixtralForCausalLM") < message.index("register_model")


def test_model_type_serves_where_architectures_is_absent():
    assert ModelRegistry.resolve({"model_type": "olmoe"}).name == "OlmoeForCausalLM"
    with pytest.raises(UnsupportedError, match="'gpt_neo' is not supported"):
        ModelRegistry.resolve({"model_type": "gpt_neo"})


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": None}])
def test_a_config_that_names_nothing(config):
    with pytest.raises(ConfigError, match="neither architectures nor model_type"):
        ModelRegistry.resolve(config)


def test_architectures_of_the_wrong_type():
    with pytest.raises(ConfigError, match="must be a list of names"):
        ModelRegistry.resolve({"architectures": "LlamaForCausalLM"})


def test_register_an_object_and_a_module_name(clean):
    target = SimpleNamespace(spec=lambda c: None, RULES=[])
    ModelRegistry.register_model("MineForCausalLM", target)
    assert ModelRegistry.resolve({"architectures": ["MineForCausalLM"]}).spec is target.spec
    ModelRegistry.register_model("YoursForCausalLM", "moesaic.models.archs.llama")
    assert ModelRegistry.resolve({"architectures": ["YoursForCausalLM"]}).rules
    ModelRegistry.register_model("BrokenForCausalLM", "json")
    with pytest.raises(ConfigError, match="has no `spec`"):
        ModelRegistry.resolve({"architectures": ["BrokenForCausalLM"]})


def test_plugins_register_once(plugins):
    calls = []

    def plugin():
        calls.append(1)
        ModelRegistry.register_model("PluggedForCausalLM", SimpleNamespace(spec=None, RULES=[]))

    plugins.append(SimpleNamespace(name="mine", value="mine:plugin", load=lambda: plugin))
    assert "PluggedForCausalLM" in ModelRegistry.get_supported_archs()
    ModelRegistry.get_supported_archs()
    assert calls == [1]


def test_a_failing_plugin_fails_with_its_own_error(plugins):
    def load():
        raise ImportError("no module named their_dependency")

    plugins.append(SimpleNamespace(name="mine", value="mine:plugin", load=load))
    with pytest.raises(ImportError, match="their_dependency") as e:
        ModelRegistry.get_supported_archs()
    assert "entry point 'mine'" in e.value.__notes__[0]


@pytest.mark.parametrize("target", ["", "my pkg", "a:b:c", "pkg/model.py:Class"])
def test_what_is_no_name_is_refused_when_it_is_registered(clean, target):
    with pytest.raises(ConfigError, match="neither a module nor module:Class"):
        ModelRegistry.register_model("MineForCausalLM", target)


def test_a_class_by_its_name(clean, tmp_path, monkeypatch):
    (tmp_path / "class_of_mine.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ModelRegistry.register_model("MineForCausalLM", "class_of_mine:Mine")
    found = ModelRegistry.resolve({"architectures": ["MineForCausalLM"]})
    assert found.model_class.__name__ == "Mine" and found.spec is None
    ModelRegistry.register_model("MineForCausalLM", "class_of_mine:Mina")
    with pytest.raises(ConfigError, match="unknown name 'Mina': did you mean 'Mine'. in class_of_mine"):
        ModelRegistry.resolve({"architectures": ["MineForCausalLM"]})


@pytest.mark.parametrize("target", ["broken_target", "broken_target:Mine"])
def test_a_target_that_fails_to_import_fails_with_its_own_error(clean, tmp_path, monkeypatch, target):
    (tmp_path / "broken_target.py").write_text("import their_missing_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ModelRegistry.register_model("MineForCausalLM", target)
    with pytest.raises(ImportError, match="their_missing_dependency") as e:
        ModelRegistry.resolve({"architectures": ["MineForCausalLM"]})
    whom = "broken_target, which is registered for the architecture 'MineForCausalLM'"
    assert e.value.__notes__ == [f"raised in {tmp_path / 'broken_target.py'}, line 1, by {whom}"]
    assert in_a_line(e.value) == f"ModuleNotFoundError: {e.value}; {e.value.__notes__[0]}"
    assert in_a_line(ValueError("of anybody")) is None


def test_registrations_are_handed_to_another_process(clean, monkeypatch):
    import moesaic.models.archs.llama as module

    class Local:
        pass

    targets = {
        "A": "pkg.model:Class",
        "B": module,
        "C": registry.Architecture,
        "D": SimpleNamespace(spec=None, RULES=[]),
        "E": Local,
    }
    for name, target in targets.items():
        ModelRegistry.register_model(name, target)
    handover = ModelRegistry.handover()
    assert handover.targets == {
        "A": "pkg.model:Class",
        "B": "moesaic.models.archs.llama",
        "C": "moesaic.models.registry:Architecture",
    }
    assert handover.left_behind == ["D", "E"] and handover.paths == sys.path
    for name in targets:
        del ModelRegistry._targets[name]
    monkeypatch.setattr(sys, "path", list(sys.path))
    ModelRegistry.take_over(replace(handover, paths=["/somewhere", *sys.path]))
    assert sys.path[-1] == "/somewhere" and ModelRegistry._targets["A"] == "pkg.model:Class"
    with pytest.raises(UnsupportedError, match="'D' was registered as an object that this process cannot import"):
        ModelRegistry.resolve({"architectures": ["D"]})


def test_reading_a_spec_needs_no_torch():
    """The command line and the API process look at checkpoints too, and must start fast."""
    code = "import sys, moesaic.models.load, moesaic.models.archs.llama; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
