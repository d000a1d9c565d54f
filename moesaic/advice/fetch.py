"""Asking a running server for its figures, with the standard library alone."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from moesaic.advice.report import WINDOW, Report, advise
from moesaic.core.errors import ConfigError

TIMEOUT = 10.0  # seconds
MOST_BYTES = 64 << 20
EXPERTS, STATUS = f"/v1/moe/experts?window={WINDOW}", "/v1/moe/status"
MISSING = (400, 404, 405, 501)  # a server without this, or a model without experts


def advise_server(url: str, api_key: str | None = None, timeout: float = TIMEOUT) -> Report:
    """Advice for the server at `url`, such as http://localhost:8000, with or without /v1.

    Raises:
        ConfigError: it cannot be reached, refuses the key, or is no moesaic server.
    """
    base = (url if "//" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    metrics = _get(base + "/metrics", api_key, timeout)
    if metrics is None:
        raise ConfigError(f"{base} is not a moesaic server: it has no /metrics")
    experts, status = (_json(base + path, api_key, timeout) for path in (EXPERTS, STATUS))
    try:
        return advise(metrics.decode(errors="replace"), experts, status)
    except ConfigError as error:
        raise ConfigError(f"{base}: {error}") from error


def _json(address: str, api_key: str | None, timeout: float) -> dict[str, Any] | None:
    data = _get(address, api_key, timeout)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{address} answers no JSON: {error}") from error
    return found if isinstance(found, dict) else None


def _get(address: str, api_key: str | None, timeout: float) -> bytes | None:
    """The reply's bytes; None if the server has no such page."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout) as response:
            data: bytes = response.read(MOST_BYTES)
            return data
    except urllib.error.HTTPError as error:
        if error.code in MISSING:
            return None
        if error.code in (401, 403):
            said = "does not accept this API key" if api_key else "needs an API key: give --api-key"
            raise ConfigError(f"{address} {said} (HTTP {error.code})") from error
        raise ConfigError(f"{address} answers HTTP {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"cannot reach {address}: {getattr(error, 'reason', error)}") from error
