"""Chat templates: programs that come with a checkpoint, run in Jinja's sandbox and within bounds of time and memory.

The sandbox alone keeps a template from the machine, not from looping for ever or filling memory. So loops and macros
look at the clock, and whatever makes text long (operators, joins, methods, filters) is asked how long before it does.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from moesaic.core.errors import RequestError

SECONDS = 5.0  # a conversation takes some milliseconds
MAX_TEXT = 1 << 25  # characters of one text, or elements of one list
MAX_NUMBER = 1_000_000  # given to a method or filter, where it may be a width or a count
MAX_POWER = 256
WIDE = re.compile(r"\d{6}|\*")  # in what describes a format


class ChatTemplate:
    """A template, compiled.

    Raises:
        RequestError: it is no valid Jinja.
    """

    def __init__(self, source: str) -> None:
        try:
            self._template = _Environment().from_string(source)
        except Exception as error:  # a template of odd structure troubles Python's own compiler
            raise RequestError(f"the model's chat template is not valid Jinja: {_short(error)}") from error

    def render(self, values: dict[str, Any]) -> str:
        """The text. Raises RequestError where the template refuses or cannot take the values, or exceeds its bounds."""
        _clock.end = time.monotonic() + SECONDS
        try:
            return _joined(self._template.generate(values))
        except Exception as error:  # whatever a program may raise
            raise RequestError(f"the chat template cannot take these messages: {_short(error)}", "messages") from error


class _Clock(threading.local):
    """When the template that this thread runs must have ended."""

    end = 0.0

    def look(self) -> str:
        if time.monotonic() > self.end:
            raise SecurityError(f"it takes more than {SECONDS:.0f} s")
        return ""


_clock = _Clock()


class _Watched(NodeTransformer):
    """Loops and macros that look at the clock, and `~` that can be watched."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._looking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._looking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._looking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        listed = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(listed, "concatenated", [], [], None, None, lineno=node.lineno)

    def _looking(self, node: Any) -> Any:
        self.generic_visit(node)
        call = nodes.Call(nodes.Name("look_at_clock", "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))
        return node


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # what is constant must not be computed while it is compiled, without bounds
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], optimized=False)
        self.concat = _joined
        self.filters["tojson"] = _to_json
        self.filters["concatenated"] = _joined
        self.filters = {name: _bounded(filter) for name, filter in self.filters.items()}
        del self.globals["lipsum"]  # Jinja's words without meaning, as many as are asked for
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["look_at_clock"] = _clock.look

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Watched().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator. Raises SecurityError where it would be too long or too large."""
        if operator == "+":
            _expect(_size(left) + _size(right))
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                _expect(_size(value) * count if isinstance(count, int) else 0)
            _expect(_bits(left) + _bits(right))
        elif operator == "**" and (_bits(left) > MAX_POWER or _bits(right) > 8):
            raise SecurityError("a power of so large numbers is not computed")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own stand-in for a text's `format` and `format_map`, that minds what it is given."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        @wraps(value)
        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (*args, *kwargs.values()))
            return safe(*args, **kwargs)

        return bounded

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a function or method."""
        _clock.look()
        _check_arguments(args, kwargs)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            _check_method(owner, name, args)
        return super().call(context, function, *args, **kwargs)


def _check_method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    """Raise SecurityError where a text's method would make a text that is too long."""
    if name == "join" and args and isinstance(args[0], list | tuple):
        _expect(sum(_size(item) + len(owner) for item in args[0]))
    elif name == "replace" and len(args) >= 2:
        _expect(len(owner) + (owner.count(args[0]) if isinstance(args[0], str) else 0) * _size(args[1]))
    elif name == "expandtabs":
        _expect(len(owner) * (args[0] if args and isinstance(args[0], int) else 8))


def _check_format(form: str, values: Any) -> None:
    if WIDE.search(form):
        raise SecurityError("a format of so many letters is not written")
    given = values if isinstance(values, tuple) else (values,)
    given = tuple(each for value in given for each in (value.values() if isinstance(value, dict) else (value,)))
    _expect(len(form) + len(form) * max((_size(value) for value in given), default=0))


def _check_arguments(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Raise SecurityError for numbers that may be widths and counts, and are too large for these."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"a number beyond {MAX_NUMBER} is given to a method or filter")


def _bounded(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that minds what it is given."""

    @wraps(filter)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _clock.look()
        _check_arguments(args, kwargs)
        name = getattr(filter, "__name__", "")
        texts = [value for value in args if isinstance(value, str)]
        if name in ("do_replace", "do_indent") and texts:
            _expect(len(texts[0]) * (1 + sum(map(len, texts[1:]))) * (kwargs.get("width") or 1))
        if name == "do_format":
            _check_format(texts[0] if texts else "", args[1:])
        if name in ("do_join", "sync_do_join"):
            values = next((value for value in args if isinstance(value, list | tuple)), ())
            _expect(sum(_size(value) + 1 for value in values))
        return filter(*args, **kwargs)

    return bounded


def _joined(parts: Iterable[Any]) -> str:
    """Texts one after the other."""
    texts, total = [], 0
    for part in parts:
        text = part if isinstance(part, str) else str(part)
        total += len(text)
        _expect(total)
        texts.append(text)
    return "".join(texts)


def _expect(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"a text of {size} letters is not made" if size < 1 << 62 else "a text is too long")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 1


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _to_json(value: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
    """JSON as chat templates expect it: unescaped, where Jinja's own filter writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **kwargs)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]}..."
