"""What clients may send: OpenAI's requests, with vLLM's extra sampling fields.

Every field is taken, ignored by name, or refused by name: a field that would change the result is never dropped.
Types are strict ("5" is no number). Ranges are SamplingParams' to check.
"""

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from moesaic.core.errors import RequestError, unknown_name
from moesaic.core.sampling_params import SamplingParams

SAMPLING_FIELDS = frozenset(f.name for f in fields(SamplingParams))

# Fields of OpenAI's and vLLM's that this version does not do, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Fields that tell OpenAI who asks and how to bill, store or cache it: nothing here depends on them.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


class Strict(BaseModel):
    """A JSON object whose every name is known; others are refused, with the nearest known name."""

    model_config = ConfigDict(strict=True)
    kind: ClassVar[str] = "field"
    ignored: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data  # pydantic says what it should have been
        for name, value in data.items():
            if name in cls.model_fields or name in cls.ignored or value is None:
                continue
            if name not in cls.unsupported:
                raise RequestError(unknown_name(cls.kind, name, cls.model_fields), name)
            allowed = cls.unsupported[name]
            if value not in allowed:
                only = f", other than {' or '.join(map(repr, allowed))}" if allowed else ""
                raise RequestError(f"{name} is not supported{only}: leave it out", name)
        return {name: value for name, value in data.items() if name in cls.model_fields}


class StreamOptions(Strict):
    """`include_obfuscation` pads events against eavesdroppers at OpenAI; here nothing is padded."""

    kind = "stream option"
    ignored = frozenset({"include_obfuscation"})
    include_usage: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _with_token_ids(value: Any) -> Any:
    """JSON has only texts for keys."""
    if not isinstance(value, dict):
        return value
    wrong = next((key for key in value if not (isinstance(key, str) and key.isdecimal() and len(key) < 16)), None)
    if wrong is not None:
        raise RequestError(f"logit_bias: {wrong!r} is not a token id", "logit_bias")
    return {int(key): bias for key, bias in value.items()}


class GenerationRequest(Strict):
    """What completions and chat have in common. None means: the default of SamplingParams."""

    ignored = HARMLESS
    unsupported = UNSUPPORTED

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(_with_token_ids)] = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    routing: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs cannot be streamed: leave out stream or prompt_logprobs", "prompt_logprobs"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling_params(self, **settled: Any) -> SamplingParams:
        """The fields that were given, and `settled` in their place; raises RequestError for a bad value."""
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS & type(self).model_fields.keys()}
        return SamplingParams(**{k: v for k, v in (given | settled).items() if v is not None or k in settled})


# ---------------------------------------------------------------- completions


def _as_prompts(value: Any) -> list[Any]:
    """One prompt or many, each a text or token ids, as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if all(isinstance(item, str | list) for item in value):
            return value
    raise RequestError("prompt must be a text, a list of texts, a list of token ids, or a list of such lists", "prompt")


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts)]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError("best_of is not supported, other than equal to n: leave it out", "best_of")
        return self

    def sampling_params(self) -> SamplingParams:
        """What the engine is asked for; an echo with logprobs needs those of the prompt too."""
        if self.echo and self.logprobs is not None and self.prompt_logprobs is None:
            return self._sampling_params(prompt_logprobs=self.logprobs)
        return self._sampling_params()


# ---------------------------------------------------------------- chat


class TextPart(Strict):
    """A piece of a message's content."""

    kind = "field of a content part"
    type: Literal["text"]
    text: str


def _as_text(content: Any) -> Any:
    """Content as one string: its text parts, a line each."""
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise RequestError(f"content[{i}] is of type {kind!r}, but this model takes text alone", "messages")
    return "\n".join(TextPart.model_validate(part).text for part in content)


class Message(Strict):
    """One message of a conversation. What OpenAI's replies add to it, and replays send back, is ignored."""

    kind = "field of a message"
    ignored = frozenset({"annotations", "audio", "function_call", "refusal"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_as_text)] = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise RequestError(f"a message of role {self.role!r} needs content", "messages")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: only what is there, and content always a string."""
        return self.model_dump(exclude_none=True) | {"content": self.content or ""}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_unused_tools(cls, data: Any) -> Any:
        """Tools that may not be called ask for nothing."""
        if isinstance(data, dict) and data.get("tool_choice") == "none":
            return {name: value for name, value in data.items() if name not in ("tools", "functions")}
        return data

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError("give max_completion_tokens or max_tokens (its old name), not both", "max_tokens")
        for name in ("messages", "self"):
            if name in (self.chat_template_kwargs or {}):
                raise RequestError(f"chat_template_kwargs cannot set {name!r}", "chat_template_kwargs")
        return self

    def sampling_params(self) -> SamplingParams:
        """What the engine is asked for; without max_tokens as much as the context allows."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return self._sampling_params(max_tokens=limit, logprobs=(self.top_logprobs or 0) if self.logprobs else None)

    def template_arguments(self) -> dict[str, Any]:
        """Keywords of Tokenizer.apply_chat_template; a message to continue needs no generation prompt."""
        proceed = bool(self.continue_final_message)
        prompt = self.add_generation_prompt if self.add_generation_prompt is not None else not proceed
        return (self.chat_template_kwargs or {}) | {"add_generation_prompt": prompt, "continue_final_message": proceed}
