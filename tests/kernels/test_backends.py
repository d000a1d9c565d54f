"""Choosing a backend, and the C++ libraries: what they say of themselves, and what is said where there is none."""

import ctypes
from dataclasses import replace

import pytest
import torch

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.kernels import reference, registry
from moesaic.kernels.cpu import library
from moesaic.kernels.cpu.calls import Kernel
from moesaic.kernels.registry import Case, choose, kernel
from moesaic.models.backends import choose_backends
from moesaic.models.load import read_spec
from tests.parity.driver import Driver, load

CASE = Case(family="norms", device="cpu", activations="torch.float32", weights="torch.float32")


@pytest.fixture(autouse=True)
def _fresh_choices():
    registry._say_refusal.cache_clear()
    library.supported_isas.cache_clear()
    library.load.cache_clear()
    yield
    library.supported_isas.cache_clear()
    library.load.cache_clear()


def test_auto_takes_the_first_that_can_and_logs_each_reason_once(caplog, monkeypatch):
    picky = {"picky": "tests.kernels.picky_backend", "reference": "moesaic.kernels.reference"}
    monkeypatch.setattr(registry, "BACKENDS", picky)
    with caplog.at_level("INFO", "moesaic.kernels.registry"):
        assert choose([CASE]) == choose([CASE, CASE]) == "reference"
    assert [r.message for r in caplog.records] == ["norms is not served by the picky backend: does nothing at all"]
    assert kernel("rms_norm", "reference") is reference.rms_norm


def test_an_explicit_backend_that_cannot_says_why(monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", {"picky": "tests.kernels.picky_backend", **registry.BACKENDS})
    with pytest.raises(UnsupportedError, match="picky: does nothing at all"):
        choose([CASE], "picky")
    with pytest.raises(UnsupportedError, match="unknown kernel backend 'referense': did you mean 'reference'"):
        choose([CASE], "referense")


def test_every_library_that_runs_here_says_what_it_is():
    names = library.supported_isas()
    assert names[-1] == "portable" and set(names) <= set(library.ISAS)
    for name in names:
        loaded = library.load(name)
        loaded.moesaic_isa.restype = ctypes.c_char_p
        assert loaded.moesaic_isa().decode() == name


def test_the_instruction_set_can_be_forced(monkeypatch):
    monkeypatch.setenv("MOESAIC_ISA", "portable")
    assert library.isa() == library.describe() == "portable"
    monkeypatch.setenv("MOESAIC_ISA", "avx1024")
    with pytest.raises(ConfigError, match="MOESAIC_ISA 'avx1024'"):
        library.isa()


def test_a_missing_or_broken_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESAIC_CPU_LIBRARIES", str(tmp_path))
    assert library.describe() == "unavailable: libmoesaic_cpu.so is not built; `pip install` of the package builds it"
    (tmp_path / "libmoesaic_cpu.so").write_text("not a library")
    assert library.describe().startswith("unavailable: ") and "does not load" in library.describe()


def test_a_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    with pytest.raises(library.Unavailable, match="this package needs 999: build it"):
        library.load("portable")


# The choice for a whole model.


@pytest.fixture
def spec(tiny_model):
    return read_spec(tiny_model("qwen3_moe"))[1]


def chosen(spec, device="cpu", dtype=torch.bfloat16, **kwargs):
    return choose_backends(spec, torch.device(device), dtype, dtype, 16, **kwargs)


def test_the_cpu_backend_serves_whatever_it_can(spec):
    assert set(chosen(spec).values()) == {"cpu"}
    assert set(chosen(spec, wanted="reference").values()) == {"reference"}


def test_a_gpu_keeps_the_reference(spec):
    assert set(chosen(spec, device="cuda").values()) == {"reference"}
    with pytest.raises(UnsupportedError, match="no backend for matrices: cpu: it computes on the CPU, the model is on"):
        chosen(spec, device="cuda", wanted="cpu")


def test_an_unknown_activation_falls_back_with_its_reason(spec, caplog):
    layers = tuple(replace(layer, ffn=replace(layer.ffn, activation="snake")) for layer in spec.layers)
    odd = replace(spec, layers=layers)
    with caplog.at_level("INFO", "moesaic.kernels.registry"):
        backends = chosen(odd)
    assert set(backends.values()) == {"reference"}, "without its products, fp32 activations would not pay"
    assert "matrices is not served by the cpu backend: no kernel for the activation 'snake'" in caplog.text
    with pytest.raises(UnsupportedError, match="no kernel for the activation 'snake'"):
        chosen(odd, wanted="cpu")


def test_in_fp32_the_other_families_still_serve(spec):
    layers = tuple(replace(layer, ffn=replace(layer.ffn, activation="snake")) for layer in spec.layers)
    backends = chosen(replace(spec, layers=layers), dtype=torch.float32)
    assert backends == dict.fromkeys(("attention", "norms", "recurrent", "router"), "cpu") | {"matrices": "reference"}


def test_without_a_library_the_reference_serves_and_says_how_slow(spec, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MOESAIC_CPU_LIBRARIES", str(tmp_path))
    with caplog.at_level("INFO", "moesaic"):
        assert set(chosen(spec).values()) == {"reference"}
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "libmoesaic_cpu.so is not built" in warnings[0] and "times slower" in warnings[0]
    with pytest.raises(UnsupportedError, match="libmoesaic_cpu.so is not built"):
        chosen(spec, wanted="cpu")


def test_a_model_runs_without_the_library(tiny_model, tmp_path, monkeypatch):
    expected = load(tiny_model("qwen3_moe"), backend="reference")
    monkeypatch.setenv("MOESAIC_CPU_LIBRARIES", str(tmp_path))
    Kernel.forget()
    streams = {0: [1, 2, 3, 4, 5]}
    logits = Driver(load(tiny_model("qwen3_moe"))).run(streams, [3, 1])[0]
    Kernel.forget()
    torch.testing.assert_close(logits, Driver(expected).run(streams, [3, 1])[0])
