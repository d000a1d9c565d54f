"""A browser, and one server with the embedded model and an API key, for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Browser, Page, find
from tests.server.real_server import RealServer

KEY = "open-sesame"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium here: install Debian's package chromium, or name one in MOESAIC_CHROMIUM")
    running = Browser(program)
    yield running
    running.close()


@pytest.fixture(scope="session")
def server(embedded_path: str) -> Iterator[RealServer]:
    if not (Path(embedded_path) / "config.json").exists():
        pytest.skip("the embedded model is not there")
    with RealServer("--api-key", KEY) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that shows nothing yet, as wide as a laptop's."""
    made = browser.page()
    made.show_as(1360, 900)
    yield made
    made.close()


@pytest.fixture
def ready(page: Page, server: RealServer) -> Page:
    """The dashboard, with its key given."""
    open_with_key(page, server)
    return page


def open_with_key(page: Page, server: RealServer) -> None:
    """As a tab that was given the key before: its first look succeeds."""
    page.send("Page.addScriptToEvaluateOnNewDocument", source=f"sessionStorage.setItem('moesaic-key', '{KEY}')")
    page.open(server.url)
    page.wait("document.querySelector('#state').textContent === 'ready'")


def say(page: Page, text: str) -> None:
    """Send a message as a user does, and wait for the end of the answer (or answers)."""
    page.click("#text")
    page.type(text)
    page.press("Enter")
    page.wait("document.querySelector('#send').textContent === 'Send' && !document.querySelector('.busy')")
