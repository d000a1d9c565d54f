"""The application around a fake engine in this process, and a started server with a real one."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from moesaic.engine.tokenizer import Tokenizer
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs
from tests.server.fake_engine import FakeEngine, byte_tokenizer
from tests.server.real_server import RealServer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def engine(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.delenv("MOESAIC_API_KEY", raising=False)
    return FakeEngine(tokenizer)


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    """An HTTP client of the application. A server that raises fails the test only through its response."""
    return TestClient(create_app(engine, ServerArgs()), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def server(embedded_path: str) -> Iterator[RealServer]:
    """One started server with the embedded model, for all tests that leave it as it was."""
    if not (Path(embedded_path) / "config.json").exists():
        pytest.skip("the embedded model is not there")
    with RealServer("--served-model-name", "moe-model", "--served-model-name", "alias") as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(server: RealServer) -> openai.OpenAI:
    """The openai package, as a client of that server."""
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
