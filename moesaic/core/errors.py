"""What can go wrong, as few kinds. A message says what is wrong, where, and what to change."""

from collections.abc import Iterable
from difflib import get_close_matches


class MoesaicError(Exception):
    """Base of every error that is the caller's to read; the command line prints its message alone."""


class ConfigError(MoesaicError, ValueError):
    """A flag, an argument or a config.json cannot be used as it stands."""


class UnsupportedError(ConfigError):
    """Something known, asked for by name, that this version does not do."""


class CheckpointError(MoesaicError):
    """A checkpoint is missing, damaged, or does not fill the model exactly."""


class RequestError(MoesaicError, ValueError):
    """One request cannot be served; no other is touched.

    Attributes:
        param: the offending field as the client named it, or None.
        code: OpenAI's word for the kind of mistake, where it has one.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineDeadError(MoesaicError):
    """The engine process ended, or cannot be reached."""


def nearest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """The candidates that look most like `name`, best first (none when nothing is close)."""
    return get_close_matches(name, list(candidates), n=count, cutoff=0.5)


def unknown_name(kind: str, name: str, candidates: Iterable[str]) -> str:
    """One sentence for a name that does not exist: `unknown argument 'tempratur': did you mean 'temperature'?`."""
    close = nearest(name, candidates)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint}"
