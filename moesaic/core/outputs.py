"""What a caller gets back. Names follow vLLM's RequestOutput and CompletionOutput."""

from dataclasses import dataclass, field
from typing import Literal

from moesaic.core.routes import RoutedExperts
from moesaic.core.routing import RequestRouting

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token, from the raw logits (before temperature and penalties).

    Attributes:
        logprob: natural logarithm.
        rank: 1 for the likeliest token of the vocabulary.
        decoded_token: the token's text alone, or None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]  # token id -> Logprob; the chosen token first, then the best ones


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's n completions, as far as it has come.

    Attributes:
        stop_reason: the stop string or stop token id that ended it; None for EOS and the rest.
        routed_experts: where the prompt's tokens and the generated ones went, but for the last; None unless asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    routed_experts: RoutedExperts | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request and its completions, as far as they have come.

    Attributes:
        prompt: the text, or None when token ids were given.
        prompt_logprobs: one entry a prompt token, the first None; None unless asked for.
        num_cached_tokens: prompt tokens whose KV came from the prefix cache.
        error: what went wrong when a completion's finish_reason is "error".
        routing: the tags and rules that the request used; None where it had neither.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finished: bool = False
    num_cached_tokens: int = 0
    error: str | None = None
    routing: RequestRouting | None = None

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.outputs[0].text
