"""Text to token ids and back, without torch: the `tokenizers` library, and Jinja for chat templates."""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.core.errors import ConfigError, RequestError
from moesaic.core.files import parse_json, read_file
from moesaic.core.log import get_logger
from moesaic.models.gguf.tokenizer import gguf_metadata, gguf_tokenizer, gguf_tokenizer_config

if TYPE_CHECKING:
    from moesaic.engine.chat_template import ChatTemplate

logger = get_logger(__name__)
MAX_TEMPLATE_BYTES = 1 << 20
MAX_REPLACEMENT = 256  # letters that a normalizer puts in place of others
CONVERT_SECONDS = 600  # a large vocabulary takes a minute or two
_NORMALIZER = re.compile(rb'"normalizer"\s*:\s*(?=\{)')
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # a byte that has no other token, in SentencePiece's spelling
CONVERT = (
    "import sys; from transformers import AutoTokenizer; "
    "AutoTokenizer.from_pretrained(sys.argv[1], use_fast=True).save_pretrained(sys.argv[2])"
)


class Tokenizer:
    """The tokeniser of a checkpoint folder.

    A folder without tokenizer.json (a SentencePiece model, say) is converted once a start by transformers, in
    a process of its own, because transformers brings torch along. Of a GGUF file, the metadata say all that a folder
    has no file for.

    Raises:
        ConfigError: there is no tokeniser, or it cannot be read.
    """

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        self.path = path
        file = Path(path) / "tokenizer.json"
        gguf = {} if file.exists() else gguf_metadata(path)
        self._config = _read_json(Path(path) / "tokenizer_config.json") or gguf_tokenizer_config(gguf)
        self._backend = _load(file) if file.exists() else gguf_tokenizer(gguf, path) if gguf else _convert(path)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._chat_template = _read_template(chat_template) if chat_template else self._own_template()

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Token ids that mean something, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it count as such. Raises RequestError where the
        tokenizer's own expressions or rules fail at the text."""
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:  # bare Exceptions, and panics
            raise RequestError(f"the tokenizer cannot take this text: {_reason(error)}") from error
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no character become U+FFFD, and so does all of what the tokenizer's
        decoder fails at: a request that runs must not end by that."""
        try:
            return str(self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens))
        except BaseException as error:
            logger.warning("%s: its tokenizer cannot decode %d tokens: %s", self.path, len(token_ids), _reason(error))
            return "\ufffd"

    def token_text(self, token_id: int) -> str:
        """The text of one token alone."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: exact for byte-level vocabularies and byte fallbacks, else those of its text."""
        token = self._backend.id_to_token(token_id)
        if token is not None and (byte := _FALLBACK.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if token is not None and self._is_byte_level and all(c in _BYTE_OF for c in token):
            return bytes(_BYTE_OF[c] for c in token)
        return self.token_text(token_id).encode()

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._backend.decoder)

    def _special(self, name: str) -> str | None:
        """The text of `bos_token` and the like, as tokenizer_config.json has it (a string or an object)."""
        value = self._config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else None

    # ---------------------------------------------------------------- chat

    def _own_template(self) -> str | None:
        """chat_template.jinja, else tokenizer_config.json's (of several, the one named default)."""
        file = Path(self.path) / "chat_template.jinja"
        if file.exists():
            return _read_template(file)
        template = self._config.get("chat_template")
        if isinstance(template, list):
            template = next(
                (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
            )
        if not isinstance(template, str | None):
            raise ConfigError(
                f"{self.path}/tokenizer_config.json: chat_template must be a text, or a list of named ones"
            )
        return template

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt that a conversation becomes, by the model's Jinja template (run in a sandbox).

        Args:
            continue_final_message: the prompt ends inside the last message, for the model to go on with.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise RequestError("this model has no chat template: use /v1/completions, or start with --chat-template")
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other",
                "continue_final_message",
            )
        if not messages:
            raise RequestError("messages must hold at least one message", "messages")
        text = self._render(messages, add_generation_prompt, template_kwargs)
        return _cut_after(text, messages[-1].get("content")) if continue_final_message else text

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, kwargs: dict[str, Any]) -> str:
        special = {name: self._special(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        values = {**special, "tools": None, "documents": None, **kwargs}
        values = {k: v for k, v in values.items() if v is not None or k in ("tools", "documents")}
        return self._template.render({"messages": messages, "add_generation_prompt": add_generation_prompt, **values})

    @cached_property
    def _template(self) -> "ChatTemplate":
        from moesaic.engine.chat_template import ChatTemplate

        return ChatTemplate(self._chat_template or "")


def _load(file: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        data = read_file(file)
        if (longest := _longest_replacement(data)) > MAX_REPLACEMENT:
            raise ValueError(f"its normalizer puts {longest} letters in place of what it finds, however often")
        return Backend.from_buffer(data)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    except BaseException as error:  # the library raises bare Exceptions, and panics
        raise ConfigError(f"{file} is not a readable tokenizer: {_reason(error)}") from error


def _longest_replacement(data: bytes) -> int:
    """The letters of the longest replacement in a tokenizer.json's normalizer, which may come for every letter of a
    text. The rest of the file, up to 30 MB, is not parsed for that."""
    longest = 0
    for key in islice(_NORMALIZER.finditer(data), 8):
        try:
            parts = [json.JSONDecoder().raw_decode(data[key.end() :].decode(errors="replace"))[0]]
        except (ValueError, RecursionError):  # the library says what is wrong
            continue
        while parts:
            part = parts.pop()
            if isinstance(part, dict):
                parts += part.values()
                longest = max(longest, len(str(part.get("content", ""))))
            elif isinstance(part, list):
                parts += part
    return longest


def _reason(error: BaseException) -> str:
    """What the library says is wrong; what is none of its errors, but an interrupt, goes on its way."""
    if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
        raise error
    text = str(error)
    return text if len(text) <= 500 else f"{text[:500]}..."


def _convert(path: str) -> Any:
    """The tokeniser that transformers makes of whatever tokeniser files the folder has."""
    known = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    hint = "give --tokenizer a folder that has one, or skip_tokenizer_init to work with token ids"
    if not any((Path(path) / name).exists() for name in known):
        raise ConfigError(f"no tokenizer in {path} (no tokenizer.json, no tokenizer.model): {hint}")
    logger.info("%s has no tokenizer.json: transformers converts its tokenizer", path)
    with tempfile.TemporaryDirectory(prefix="moesaic-tokenizer-") as target:
        command = [sys.executable, "-c", CONVERT, path, target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CONVERT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"the tokenizer in {path} takes over {CONVERT_SECONDS} s to convert: {hint}") from error
        file = Path(target) / "tokenizer.json"
        if done.returncode or not file.exists():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(f"the tokenizer in {path} cannot be read ({reason}): {hint}")
        return _load(file)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        value = parse_json(read_file(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _read_template(source: str | Path) -> str:
    if not os.path.isfile(source):
        raise ConfigError(f"chat_template {str(source)!r} is not a file")
    try:
        return read_file(source, MAX_TEMPLATE_BYTES).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the chat template {source}: {error}") from error


def _cut_after(text: str, content: Any) -> str:
    """`text` up to the end of the last message's content."""
    final = content.strip() if isinstance(content, str) else ""
    at = text.rfind(final)
    if not final or at < 0:
        raise RequestError("continue_final_message needs a last message with text", "continue_final_message")
    return text[: at + len(final)]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: visible characters stand for themselves, the rest from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
