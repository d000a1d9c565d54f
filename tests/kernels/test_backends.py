"""Choosing a backend, and the C++ library: built here if it can be, its binding honest where it is not."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from moesaic.core.errors import UnsupportedError
from moesaic.kernels import cpu, reference, registry
from moesaic.kernels.registry import Case, kernel

CASE = Case("rms_norm", "cpu", "torch.float32")
ISAS = {"avx512_bf16", "avx512", "avx2", "portable"}
CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(autouse=True)
def _fresh_choices():
    kernel.cache_clear()
    registry._announce.cache_clear()
    cpu.library.cache_clear()
    yield
    kernel.cache_clear()
    cpu.library.cache_clear()


def test_auto_takes_the_first_that_can_and_logs_it_once(caplog, monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", {"picky": "tests.kernels.picky_backend", **registry.BACKENDS})
    with caplog.at_level("INFO", "moesaic.kernels.registry"):
        assert kernel(CASE) is reference.rms_norm
        assert kernel(Case("combine", "cpu", "torch.float32")) is reference.combine
    assert [r.message for r in caplog.records] == ["kernels on cpu in float32: reference"]


def test_an_explicit_backend_that_cannot_says_why(monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", {"picky": "tests.kernels.picky_backend", **registry.BACKENDS})
    with pytest.raises(UnsupportedError, match="picky: does nothing at all"):
        kernel(CASE, "picky")
    with pytest.raises(UnsupportedError, match="unknown kernel backend 'referense': did you mean 'reference'"):
        kernel(CASE, "referense")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The C++ library, compiled as plainly as a compiler can."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    out = tmp_path_factory.mktemp("cpu") / cpu.LIBRARY
    flags = ["-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, *sorted(CSRC.glob("*.cpp")), "-o", out], check=True)
    return out


def test_the_library_knows_its_machine(built, monkeypatch):
    monkeypatch.setattr(cpu, "files", lambda name: built.parent)
    assert cpu.isa() in ISAS
    assert ctypes.CDLL(str(built)).moesaic_abi_version() == cpu.ABI_VERSION


def test_a_library_of_another_version_is_refused(built, monkeypatch):
    monkeypatch.setattr(cpu, "files", lambda name: built.parent)
    monkeypatch.setattr(cpu, "ABI_VERSION", 999)
    assert "needs 999: build it again" in cpu.isa()


def test_a_missing_or_broken_library_gives_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "files", lambda name: tmp_path)
    assert cpu.isa() == "unavailable: libmoesaic_cpu.so is not built; `pip install` of the package builds it"
    cpu.library.cache_clear()
    (tmp_path / cpu.LIBRARY).write_text("not a library")
    assert cpu.isa().startswith("unavailable: ") and "does not load" in cpu.isa()
