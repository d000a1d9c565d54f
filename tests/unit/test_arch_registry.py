"""Finding the architecture of a config: built in, registered, from a plugin, or not known."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.models import registry
from moesaic.models.registry import ModelRegistry

FIVE = {"GraniteMoeForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM"}


@pytest.fixture
def clean(monkeypatch):
    """Registrations of a test end with it."""
    monkeypatch.setattr(ModelRegistry, "_targets", dict(ModelRegistry._targets))


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


def test_reading_a_spec_needs_no_torch():
    """The command line and the API process look at checkpoints too, and must start fast."""
    code = "import sys, moesaic.models.load, moesaic.models.archs.llama; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
