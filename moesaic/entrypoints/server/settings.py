"""ServerArgs: what a user may say about the HTTP server. Names follow vLLM; each default lives beside its help."""

import os
from dataclasses import dataclass

from moesaic.core.errors import ConfigError
from moesaic.core.strict import strict_kwargs
from moesaic.engine.args import arg

API_KEY_VARIABLE = "MOESAIC_API_KEY"
LOG_LEVELS = ("debug", "info", "warning", "error")


@strict_kwargs
@dataclass(frozen=True, kw_only=True)
class ServerArgs:
    """Arguments of the server, as the command line takes them. An unknown one raises ConfigError."""

    host: str = arg("127.0.0.1", "address to listen on; 0.0.0.0 for every interface of the machine")
    port: int = arg(8000, "port to listen on; 0 picks a free one")
    uds: str | None = arg(None, "listen on this Unix socket instead of host and port", metavar="PATH")
    api_key: list[str] = arg(
        [], f"key that clients must send as bearer token; repeatable; {API_KEY_VARIABLE} adds another", metavar="KEY"
    )
    root_path: str = arg("", "path under which a proxy publishes this server", metavar="PATH")
    allowed_origins: list[str] = arg(
        [], "origin whose web pages may call this server (CORS); * for all; repeatable", metavar="ORIGIN"
    )
    moe_profile_dir: str | None = arg(
        None,
        "folder that POST /v1/moe/profile/start may write recorded routes into; it is made if it is not there, and "
        "without it nothing is recorded over HTTP",
        metavar="DIR",
    )
    log_level: str | None = arg(None, "what is logged; else MOESAIC_LOG_LEVEL decides, else info", choices=LOG_LEVELS)
    disable_log_requests: bool = arg(False, "do not log a line for each finished request")
    metrics_aliases: str | None = arg(
        None, "export metrics by another engine's names too, for its boards", choices=("vllm",)
    )
    grace_seconds: float = arg(5.0, "how long running requests may go on after a signal to stop")

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_key):
            raise ConfigError("api_key must not be empty: such a key would let everybody in")

    @property
    def keys(self) -> list[str]:
        """Every accepted API key; none when the server is open."""
        from_environment = os.environ.get(API_KEY_VARIABLE)
        return [*self.api_key, *([from_environment] if from_environment else [])]
