"""What can go wrong, as few kinds. A message says what is wrong, where, and what to change."""

from collections.abc import Iterable
from difflib import get_close_matches
from traceback import extract_tb

DEBUG_VARIABLE = "MOESAIC_DEBUG"
MOST_SHOWN = 4000  # letters of a message


class MoesaicError(Exception):
    """Base of every error that is the caller's to read; the command line prints its message alone."""

    def __str__(self) -> str:
        """The message; what names and values from damaged files make too long is left out in its middle."""
        text = super().__str__()
        return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 500]} ... {text[-500:]}"


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


def blame(error: Exception, whom: str) -> None:
    """Say of an error in code that is not ours who asked for it, as a note on it: the note says where it was raised,
    too, so that `in_a_line` can leave the rest of the traceback out."""
    frames = [f for f in extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    error.add_note(f"raised in {frames[-1].filename}, line {frames[-1].lineno}, by {whom}")


def in_a_line(error: Exception) -> str | None:
    """The message to show alone: of our errors, and of others that `blame` has marked; None for any other error, of
    which only a traceback tells enough."""
    if isinstance(error, MoesaicError):
        return str(error)
    notes = getattr(error, "__notes__", None)
    return "; ".join([f"{type(error).__name__}: {error}", *notes]) if notes else None


def nearest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """The candidates that look most like `name`, best first (none when nothing is close)."""
    return get_close_matches(name, list(candidates), n=count, cutoff=0.5)


def unknown_name(kind: str, name: str, candidates: Iterable[str]) -> str:
    """One sentence for a name that does not exist: `unknown argument 'tempratur': did you mean 'temperature'?`."""
    close = nearest(name, candidates)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint}"
