"""Choosing a backend, and the C++ libraries: what they say of themselves, and what is said where there is none."""

import ctypes

import pytest

from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.kernels import reference, registry
from moesaic.kernels.cpu import library
from moesaic.kernels.registry import Case, choose, kernel

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
