"""A real Prometheus scrapes a real server: its metrics are clean, the files of docs/operate work, all is drawn."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from socket import socket
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tools import make_board

OPERATE = Path(__file__).parents[2] / "docs" / "operate"
RATE_INTERVAL = "10s"  # what Grafana would put in


def program(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.fixture(scope="module")
def served(server, openai_client):
    """The server, once it has served something: histograms of what never happened have no values to draw."""
    for prompt in ("47 + 38 =", "47 + 38 =", "Explain MoE architecture"):
        openai_client.completions.create(model="moe-model", prompt=prompt * 5, max_tokens=24)
    return server


@pytest.fixture(scope="module")
def prometheus(served, openai_client, tmp_path_factory):
    """Its address, with three scrapes of the server in it."""
    command, folder, port = program("prometheus"), tmp_path_factory.mktemp("prometheus"), free_port()
    text = (OPERATE / "prometheus.yml").read_text()
    host = served.url.removeprefix("http://")
    assert "127.0.0.1:8000" in text and "scrape_interval: 5s" in text
    config = folder / "prometheus.yml"
    config.write_text(text.replace("127.0.0.1:8000", host).replace("scrape_interval: 5s", "scrape_interval: 500ms"))
    address = f"127.0.0.1:{port}"
    options = [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}", "--log.level=warn"]
    log = (folder / "log").open("w+")
    process = subprocess.Popen([command, f"--config.file={config}", *options], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is None and ask(address, "query", query="count_over_time(up[1m]) >= 1"), folder)
        openai_client.completions.create(model="moe-model", prompt="Give me a JSON object", max_tokens=24)
        until(lambda: ask(address, "query", query="count_over_time(up[1m]) >= 6"), folder)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def free_port():
    with socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(address, what, **arguments):
    """The result of one call of Prometheus's API; None while it does not listen yet."""
    try:
        with urlopen(f"http://{address}/api/v1/{what}?{urlencode(arguments)}") as response:
            found = json.load(response)
    except HTTPError as error:
        if error.code == 503:
            return None
        raise AssertionError(f"{arguments}: {error.read().decode()}") from error
    except URLError:
        return None
    assert found["status"] == "success" and not found.get("warnings"), found
    return found["data"] if what != "query" else found["data"]["result"]


def until(done, folder, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.2)


def queries():
    panels = json.loads((OPERATE / "grafana.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def test_the_board_is_as_it_is_made():
    assert make_board.FILE.read_text() == make_board.board(), "make docs"


def test_metrics_are_clean(served):
    promtool = program("promtool")
    with urlopen(served.url + "/metrics") as response:
        text = response.read()
    found = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert found.returncode == 0 and not found.stderr, found.stderr.decode()


def test_the_configuration_is_valid():
    command = [program("promtool"), "check", "config", str(OPERATE / "prometheus.yml")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_query_of_the_board_is_answered(prometheus):
    empty = []
    for title, expr in queries():
        result = ask(prometheus, "query", query=filled(expr))
        if not result:
            empty.append((title, expr))
    assert not empty


def filled(expr):
    """As Grafana sends it."""
    return expr.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")


def test_the_board_shows_every_metric(prometheus):
    there = {name for name in ask(prometheus, "label/__name__/values") if name.startswith("moesaic_")}
    drawn = {name for _, expr in queries() for name in re.findall(r"moesaic_\w+", expr)}
    assert len(there) > 20
    assert not drawn - there
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in drawn}
    left_out = {name for name in there if re.sub(r"_(bucket|sum|count)$", "", name) not in families}
    assert left_out <= {"moesaic_info"}
