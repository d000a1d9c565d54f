"""Flags made of dataclass fields: one field, one flag, whose help and choices stand in the field's metadata."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import click

from moesaic.core.errors import ConfigError
from moesaic.engine.args import EMBEDDED_MODEL, EngineArgs

T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# The fields of SamplingParams that the command line offers; SamplingParams documents and checks them.
SAMPLING = {
    "n": "completions of the prompt",
    "temperature": "randomness; 0 always takes the likeliest token",
    "top_p": "draw from the likeliest tokens that together reach this probability",
    "top_k": "draw from this many likeliest tokens; 0 for all",
    "min_p": "draw from tokens at least this share as likely as the likeliest",
    "presence_penalty": "subtracted from the logit of a token that occurred",
    "frequency_penalty": "subtracted from the logit of a token for each time it occurred",
    "repetition_penalty": "divides the logit of a token that occurred",
    "stop": "text that ends the output; repeatable",
    "max_tokens": "tokens to generate at most",
    "min_tokens": "tokens to generate at least",
    "ignore_eos": "go on where the model would end",
}


def options_of(cls: type, help_of: dict[str, str] | None = None, **defaults: Any) -> Decorator:
    """A decorator that adds a flag for each field of dataclass `cls`.

    Args:
        help_of: the fields to take and their help; by default all, with the help in their metadata.
        defaults: other defaults than the fields' own.
    """
    hints = get_type_hints(cls)
    chosen = [f for f in fields(cls) if help_of is None or f.name in help_of]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for f in reversed(chosen):  # click lists the option that was added last first
            text = help_of[f.name] if help_of is not None else f.metadata["help"]
            function = _option(f, hints[f.name], text, defaults.get(f.name, _default(f)))(function)
        return function

    return decorate


def _default(f: "Field[Any]") -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _option(f: "Field[Any]", hint: Any, text: str, default: Any) -> Decorator:
    """The flag of one field; a field that is false by default needs no --no-flag to say so."""
    flag = "--" + f.name.replace("_", "-")
    if hint is bool:
        declaration = f"{flag}/--no-{flag[2:]}" if default else flag
        return click.option(declaration, f.name, is_flag=True, default=default, help=text, show_default=default)
    kind, repeatable = _click_type(f, hint)
    return click.option(
        flag,
        f.name,
        type=kind,
        multiple=repeatable,
        default=tuple(default) if repeatable else default,
        metavar=f.metadata.get("metavar"),
        show_default=default not in (None, [], ""),
        help=text,
    )


def _click_type(f: "Field[Any]", hint: Any) -> tuple[Any, bool]:
    """click's type of a field, and whether its flag may be repeated."""
    if f.metadata.get("choices"):
        return click.Choice(f.metadata["choices"]), False
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    if get_origin(hint) is list:
        return kinds[0], True
    listed = [kind for kind in kinds if get_origin(kind) is list]
    if listed:  # such as list[str] | str
        return get_args(listed[0])[0], True
    return (str if str in kinds else kinds[0]), False


def build(cls: type[T], values: dict[str, Any]) -> T:
    """A `cls` of the flags' values; what it does not know is left for others."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k in known})


def engine_args(model: str | None, values: dict[str, Any]) -> EngineArgs:
    """EngineArgs of the flags' values, and of the model where it was given without its flag."""
    if model is not None:
        if values["model"] not in (EMBEDDED_MODEL, model):
            raise ConfigError(f"two models were given, {model!r} and --model {values['model']!r}: choose one")
        values = values | {"model": model}
    return build(EngineArgs, values)
