"""The application around a fake engine, in this process."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from moesaic.engine.tokenizer import Tokenizer
from moesaic.entrypoints.server.app import create_app
from moesaic.entrypoints.server.settings import ServerArgs
from tests.server.fake_engine import FakeEngine, byte_tokenizer


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
