"""What many tests need: no network, few threads, tiny models made once, and the embedded model."""

import logging
import os
from pathlib import Path

import pytest

from moesaic.kernels.cpu.library import Unavailable, supported_isas

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

LOG_LEVEL = os.environ.get("MOESAIC_LOG_LEVEL")
EMBEDDED = Path(__file__).parent.parent / "moesaic" / "embedded" / "moe-model"


@pytest.fixture(autouse=True)
def log_level_stays():
    """Commands that run in this process, in fixtures too, set the level of the log; servers of later tests would
    inherit it."""
    yield
    os.environ.pop("MOESAIC_LOG_LEVEL", None)
    if LOG_LEVEL is not None:
        os.environ["MOESAIC_LOG_LEVEL"] = LOG_LEVEL


@pytest.fixture
def log(caplog, monkeypatch):
    """What the package logs, from INFO up, each record once: its logger hands nothing on to the root, to whose handlers
    pytest adds its own; newer versions add it here too."""
    logger = logging.getLogger("moesaic")
    others = [handler for handler in logger.handlers if handler is not caplog.handler]
    monkeypatch.setattr(logger, "handlers", [*others, caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.INFO, "moesaic")
    return caplog


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models are tiny, and threads would only wait for each other; an engine may set its own number."""
    import torch

    torch.set_num_threads(1)


def _isas() -> list:
    try:
        return list(supported_isas())
    except Unavailable as reason:
        return [pytest.param("none", marks=pytest.mark.skip(str(reason)))]


ISAS = _isas()


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """The instruction set whose kernels the test calls: each that the machine can run."""
    from moesaic.kernels.cpu.calls import Kernel

    monkeypatch.setenv("MOESAIC_ISA", request.param)
    Kernel.forget()
    yield request.param
    Kernel.forget()


@pytest.fixture
def cpu_library() -> None:
    """Skips where the C++ kernels are not built, or not for this machine."""
    try:
        supported_isas()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """A function: family and overrides in, folder of a tiny random checkpoint out, made once a session."""
    from tests.tiny_models import make_tiny

    made: dict[str, str] = {}

    def folder(family: str, **overrides) -> str:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            made[key] = str(make_tiny(family, tmp_path_factory.mktemp(family), **overrides))
        return made[key]

    return folder


@pytest.fixture(scope="session")
def embedded_path() -> str:
    """Folder of the embedded model."""
    return str(EMBEDDED)
