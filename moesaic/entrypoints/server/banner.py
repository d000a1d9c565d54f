"""What `moesaic serve` says when it is ready: what is served, where, and a line to try it."""

import json
import shlex
import socket
import sys

from moesaic import __version__
from moesaic.core.messages import EngineInfo
from moesaic.entrypoints.server.settings import ServerArgs


def show_ready(info: EngineInfo, settings: ServerArgs, sock: socket.socket, seconds: float) -> None:
    """Print it: a panel on a terminal, else two plain lines (the first begins with `ready: ` and the address)."""
    address = address_of(settings, sock)
    if not sys.stdout.isatty():
        print(f"ready: {address} serves {info.names[0]} ({info.description}) after {seconds:.1f} s", flush=True)
        print(curl_line(info, settings, address), flush=True)
        return
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    lines = Group(
        Text.assemble((info.names[0], "bold"), f"  {info.description}"),
        Text(f"{info.dtype} on {info.device}, {info.max_model_len} tokens of context"),
        Text(),
        Text.assemble(("API and dashboard  ", "dim"), (address, "bold cyan")),
    )
    console = Console()
    title = f"moesaic {__version__} is ready after {seconds:.1f} s"
    console.print(Panel(lines, title=title, title_align="left", border_style="green", expand=False))
    print(curl_line(info, settings, address) + "\n", flush=True)  # outside the frame, so that it can be copied


def address_of(settings: ServerArgs, sock: socket.socket) -> str:
    """The URL of the server (of a Unix socket its path)."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{sock.getsockname()[1]}"


def curl_line(info: EngineInfo, settings: ServerArgs, address: str) -> str:
    """A command that asks the server something."""
    where = f"--unix-socket {shlex.quote(settings.uds)} http://localhost" if settings.uds else address
    key = "-H 'Authorization: Bearer KEY' " if settings.keys else ""
    body = json.dumps({"model": info.names[0], "prompt": "Explain MoE architecture", "max_tokens": 64})
    return f"curl {where}/v1/completions {key}-H 'Content-Type: application/json' -d {shlex.quote(body)}"
