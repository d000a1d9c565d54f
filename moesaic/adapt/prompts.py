"""Prompts to profile a model with: a file of JSON lines."""

import os
from dataclasses import dataclass, field
from typing import Any

import moesaic.embedded
from moesaic.core.errors import ConfigError, unknown_name
from moesaic.core.files import open_regular, parse_json
from moesaic.core.routing_options import RoutingOptions
from moesaic.engine.tokenizer import Tokenizer

EMBEDDED_PROMPTS = os.path.join(os.path.dirname(moesaic.embedded.__file__), "prompts.jsonl")
KEYS = ("prompt", "messages", "tags")
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class Prompt:
    """One line: a text to complete, or a conversation to answer (then `text` is None), and what it is about."""

    text: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file: in each line `{"prompt": TEXT}` or `{"messages": [...]}`, perhaps with `"tags": [...]`.

    Raises:
        ConfigError: the file cannot be read, or a line is something else: the message names it.
    """
    found = []
    try:
        with open(open_regular(path), "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if line.strip():
                    found.append(_prompt(f"{path}, line {number}", line))
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror or e}") from e
    if not found:
        raise ConfigError(f"{path} holds no prompt")
    return found


def tokens_of(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    """A prompt as token ids; a conversation by the model's template. Raises ConfigError where there is no tokenizer."""
    if tokenizer is None:
        raise ConfigError("prompts need a tokenizer: leave --skip-tokenizer-init out")
    if prompt.text is not None:
        return tokenizer.encode(prompt.text)
    text = tokenizer.apply_chat_template(prompt.messages)
    return tokenizer.encode(text, add_special_tokens=False)  # the template writes its own


def _prompt(where: str, line: bytes) -> Prompt:
    try:
        value = parse_json(line)
    except ValueError as e:
        raise ConfigError(f"{where} is no JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f'{where} must be an object with "prompt" or "messages"')
    for key in value:
        if key not in KEYS:
            raise ConfigError(f"{where}: {unknown_name('key', key, KEYS)}")
    text, messages = value.get("prompt"), value.get("messages")
    if (text is None) == (messages is None):
        raise ConfigError(f'{where} must have one of "prompt" and "messages"')
    if text is not None and (not isinstance(text, str) or not text):
        raise ConfigError(f'{where}: "prompt" must be a text')
    if messages is not None and not _is_conversation(messages):
        raise ConfigError(f'{where}: "messages" must be a list of objects with "role" and "content", which are texts')
    try:
        tags = RoutingOptions(tags=value.get("tags", [])).tags
    except ValueError as e:
        raise ConfigError(f"{where}: {e}") from e
    return Prompt(text, messages or [], tags)


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
        and all(isinstance(m.get("content"), str) for m in messages)
    )
