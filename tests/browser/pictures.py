"""The pictures of the dashboard in the README and the docs: python -m tests.browser.pictures FOLDER."""

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

from tests.browser.chromium import Browser, Page, find
from tests.browser.conftest import say
from tests.server.real_server import RealServer

MOST_BYTES = 300_000
# name: width, height, dark, phone, whether two settings are compared, what is said
SHOTS = {
    "dashboard": (1360, 1020, False, False, False, ("What is 47 + 38?", "Explain MoE architecture")),
    "dashboard-compare": (1360, 1400, True, False, True, ("Explain MoE architecture",)),
    "dashboard-phone": (375, 1500, False, True, False, ("Write a JSON object with name and age.",)),
}

TRAFFIC = {"sums": "What is 31 + 58?", "json": "Write a JSON object with name and age.", "prose": "What is a router?"}


def traffic(url: str, stop: threading.Event) -> None:
    """Requests of three kinds, one after the other, so that the charts have something to show."""
    while not stop.is_set():
        for tag, message in TRAFFIC.items():
            body = {"messages": [{"role": "user", "content": message}], "temperature": 0.7, "routing": {"tags": [tag]}}
            request = urllib.request.Request(
                url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                reply.read()
            stop.wait(0.3)


def shoot(page: Page, url: str, name: str, folder: Path) -> None:
    width, height, dark, phone, two, messages = SHOTS[name]
    page.show_as(width, height, dark=dark, phone=phone)
    page.open(url)
    page.wait("document.querySelector('#state').textContent === 'ready'")
    if two:
        page.click("#compare")
        page.run("document.querySelectorAll('[name=top_k]')[1].value = '1'")
        page.click("#numbers")
    for message in messages:
        say(page, message)
        time.sleep(15)  # for the heat map and the charts
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    token = ".message.assistant:last-of-type .token:nth-child(9)"
    x, y = page.run(
        f"(() => {{ const b = [...document.querySelectorAll('{token}')].at(-1).getClientRects()[0];"
        " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
    )
    page.point(x, y)
    path = folder / f"{name}.png"
    page.picture(path)
    assert page.errors == [], page.errors
    assert path.stat().st_size < MOST_BYTES, path


def main(folder: Path) -> None:
    program = find()
    if program is None:
        sys.exit("no Chromium here: install Debian's package chromium, or name one in MOESAIC_CHROMIUM")
    browser = Browser(program)
    try:
        with RealServer() as server:
            over = threading.Event()
            others = threading.Thread(target=traffic, args=(server.url, over))
            others.start()
            for name in SHOTS:
                shoot(browser.page(), server.url, name, folder)
            over.set()
            others.join()
    finally:
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
