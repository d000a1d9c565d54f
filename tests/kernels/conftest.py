"""Every test that takes `isa` runs on each instruction set that the machine can run."""

import pytest

from moesaic.kernels.cpu.calls import Kernel
from moesaic.kernels.cpu.library import Unavailable, supported_isas


def _isas():
    try:
        return supported_isas()
    except Unavailable as reason:
        return [pytest.param("none", marks=pytest.mark.skip(str(reason)))]


ISAS = _isas()


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """The instruction set whose kernels the test calls."""
    monkeypatch.setenv("MOESAIC_ISA", request.param)
    Kernel.forget()
    yield request.param
    Kernel.forget()
