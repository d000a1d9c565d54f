"""The two partners of `moesaic chat`: a model in this process, and a server."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from typing import Any, Protocol

from moesaic.core.errors import ConfigError, EngineDeadError, MoesaicError, RequestError
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs

Messages = list[dict[str, Any]]
DATA = b"data: "


class Talk(Protocol):
    """Who answers."""

    name: str

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """The pieces of an answer as they come; raises RequestError when there is none to these messages."""


class LocalTalk:
    """A model in this process."""

    def __init__(self, args: EngineArgs, params: SamplingParams) -> None:
        from moesaic.entrypoints.cli.local import LocalModel

        self._model = LocalModel(args)
        self._params = params
        tokenizer = self._model.engine.tokenizer
        if tokenizer is None:
            raise ConfigError("chat needs a tokenizer: leave out --skip-tokenizer-init")
        self._tokenizer = tokenizer
        self.name = self._model.name

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        text = self._tokenizer.apply_chat_template(messages)
        prompt = {"prompt_token_ids": self._tokenizer.encode(text, add_special_tokens=False)}
        given = 0
        for output in self._model.outputs(prompt, self._params):
            if output.error is not None:
                raise MoesaicError(output.error)
            if len(output.text) > given:
                yield output.text[given:]
                given = len(output.text)


class RemoteTalk:
    """A server that speaks OpenAI's API, this one or another. Uses the standard library alone."""

    def __init__(self, url: str, api_key: str | None, model: str | None, fields: dict[str, Any]) -> None:
        self._base = url.rstrip("/").removesuffix("/v1")
        self._key = api_key
        self._fields = {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
        self.name = model or self._first_model()

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        body = {"model": self.name, "messages": messages, "stream": True} | self._fields
        with self._open("/v1/chat/completions", body) as response:
            for message in _events(response):
                if "error" in message:
                    raise MoesaicError(message["error"].get("message", "the server gave up"))
                for choice in message.get("choices", ()):
                    if choice["delta"].get("content"):
                        yield choice["delta"]["content"]

    def _first_model(self) -> str:
        with self._open("/v1/models") as response:
            served = json.load(response).get("data") or [{}]
        if "id" not in served[0]:
            raise ConfigError(f"{self._base} serves no model")
        return str(served[0]["id"])

    def _open(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._base + path, data, headers)
            response: http.client.HTTPResponse = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ConfigError(f"cannot talk to {self._base}: {getattr(error, 'reason', error)}") from error
        return response


def _events(response: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The messages of a stream of server-sent events."""
    try:
        for line in response:
            data = line.removeprefix(DATA).strip()
            if data == b"[DONE]":
                return
            if line.startswith(DATA):
                yield json.loads(data)
    except (OSError, http.client.HTTPException) as error:
        raise EngineDeadError(f"the server broke off: {error}") from error


def _refusal(error: urllib.error.HTTPError) -> RequestError:
    """The server's own words, if it has some."""
    try:
        message = json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason
    return RequestError(f"{message} (HTTP {error.code})")
