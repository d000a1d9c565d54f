"""A headless Chromium, driven over its DevTools pipe (file descriptors 3 and 4): no driver to install, no port to open.

The protocol is JSON messages, each ended by a zero byte: https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chromium-headless-shell")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root may not use it; the pages are ours
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
    "--hide-scrollbars",
)
SECONDS = 60.0  # until a command must be answered, and until what a test waits for must be so
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def find() -> str | None:
    """The browser's program: MOESAIC_CHROMIUM, or one on the path."""
    given = os.environ.get("MOESAIC_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(AssertionError):
    """The browser refused a command, or what a test waited for did not come."""


class Browser:
    """One process of the browser, with a profile that is thrown away.

    Args:
        program: its path.
    """

    def __init__(self, program: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="moesaic-browser-")
        to_browser, self._to = _high(os.pipe())
        self._from, from_browser = _high(os.pipe())
        log = os.open(Path(self._profile) / "log", os.O_WRONLY | os.O_CREAT)
        actions = [
            (os.POSIX_SPAWN_DUP2, to_browser, 3),
            (os.POSIX_SPAWN_DUP2, from_browser, 4),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        arguments = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._pid = os.posix_spawn(program, arguments, os.environ | {"HOME": self._profile}, file_actions=actions)
        for fd in (to_browser, from_browser, log):
            os.close(fd)
        self._ids = count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = threading.Condition()
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._ended = False
        self._writing = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._from, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    with self._answered:
                        self._answers[message["id"]] = message
                        self._answered.notify_all()
                elif listener := self._listeners.get(message.get("sessionId", "")):
                    listener(message["method"], message["params"])
        os.close(self._from)
        with self._answered:
            self._ended = True
            self._answered.notify_all()

    def post(self, method: str, session: str | None = None, **parameters: Any) -> int:
        """Send a command; returns the id of its answer."""
        message = {"id": next(self._ids), "method": method, "params": parameters}
        data = memoryview(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        with self._writing:
            while data:
                data = data[os.write(self._to, data) :]
        return message["id"]

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        wanted = self.post(method, session, **parameters)
        with self._answered:
            self._answered.wait_for(lambda: wanted in self._answers or self._ended, SECONDS)
            if wanted not in self._answers:
                raise BrowserError(f"{method}: no answer; the browser's log:\n{self._log()}")
            answer = self._answers.pop(wanted)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _log(self) -> str:
        return (Path(self._profile) / "log").read_text(errors="replace")[-2000:]

    def page(self) -> "Page":
        """A new page, in a context of its own: nothing of others is stored there."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context)

    def listen(self, session: str, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Events of a page go to `listener`, on the thread that reads."""
        self._listeners[session] = listener

    def close(self) -> None:
        os.kill(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.02)
        os.close(self._to)
        shutil.rmtree(self._profile, ignore_errors=True)


def _high(pipe: tuple[int, int]) -> tuple[int, int]:
    """The same pipe under numbers that 3 and 4 do not overwrite."""
    raised = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pipe)
    for fd in pipe:
        os.close(fd)
    return raised[0], raised[1]


class Page:
    """A tab. What it logs as an error and what it requests is kept.

    Attributes:
        errors: texts of console errors, exceptions, failed loads and violations of the page's policy.
        requests: URLs, in order.
        fakes: by the beginning of a URL's path: a function of the request's body that gives (status, type, body).
    """

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.fakes: dict[str, Callable[[str], tuple[int, str, str]]] = {}
        browser.listen(session, self._hear)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **parameters)

    def _hear(self, method: str, event: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])
            case "Log.entryAdded" if event["entry"]["level"] == "error":
                self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
            case "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            case "Fetch.requestPaused":
                self._answer(event)

    def fake(self, path: str, answer: Callable[[str], tuple[int, str, str]]) -> None:
        """Requests whose path begins so get `answer(body)` and never reach the server."""
        self.fakes[path] = answer
        self.send("Fetch.enable", patterns=[{"urlPattern": f"*{fake}*"} for fake in self.fakes])

    def _answer(self, event: dict[str, Any]) -> None:
        url = event["request"]["url"]
        answer = next(answer for path, answer in self.fakes.items() if path in url)
        status, kind, body = answer(event["request"].get("postData", ""))
        self._browser.post(
            "Fetch.fulfillRequest",
            self._session,
            requestId=event["requestId"],
            responseCode=status,
            responseHeaders=[{"name": "Content-Type", "value": kind}],
            body=base64.b64encode(body.encode()).decode(),
        )

    def show_as(self, width: int, height: int, *, dark: bool = False, phone: bool = False, scale: float = 1) -> None:
        """The size of the window, its theme, and whether motion is unwelcome (always: pictures are to be still)."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (awaited if it is a promise)."""
        done = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise BrowserError(f"{expression}: {done['exceptionDetails']['exception']['description']}")
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true; returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            if time.monotonic() > deadline:
                raise BrowserError(f"not so after {seconds} s: {expression}; errors: {self.errors}")
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def centre(self, selector: str) -> tuple[float, float]:
        """Where the middle of the first element is, scrolled into view."""
        found = json.dumps(selector)
        box = self.run(
            f"(() => {{ const e = document.querySelector({found}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getClientRects()[0]; return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return box[0], box[1]

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.centre(selector)
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One of KEYS."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": "\r"} if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def choose(self, selector: str, value: str) -> None:
        """Set a field or a list, as its user would."""
        found = json.dumps(selector)
        self.run(
            f"(() => {{ const e = document.querySelector({found}); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)
