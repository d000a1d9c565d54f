"""How one request wants its tokens chosen and when it ends. Names and meanings follow vLLM's SamplingParams."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

from moesaic.core.errors import RequestError
from moesaic.core.routing_options import RoutingOptions
from moesaic.core.strict import strict_kwargs

MAX_LOGPROBS = 100
MAX_N = 128
GREEDY_EPSILON = 1e-5
FLAGS = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize", "return_routed_experts")


@strict_kwargs
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Every field is checked on construction; a value out of its range raises RequestError.

    Attributes:
        n: how many completions of the prompt, 1 to 128; they share the prompt's KV blocks.
        temperature: divides the logits; 0 (below 1e-5) is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this, (0, 1].
        top_k: keep this many best tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one, [0, 1].
        presence_penalty, frequency_penalty: subtracted from the logit of a token generated before,
            once or per occurrence, [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt
            or output (Keskar et al. 2019), > 0.
        seed: makes this request's draws reproducible, whatever else is in the batch.
        stop: strings that end the text (not part of it unless include_stop_str_in_output).
        stop_token_ids: tokens that end the sequence; like EOS they are not part of the text.
        ignore_eos: go on after EOS.
        max_tokens: most tokens to generate; None for as many as the model's length allows.
        min_tokens: EOS and stop tokens cannot be drawn, nor stop strings end it, before this many.
        logit_bias: token id -> value added to its logit, [-100, 100].
        logprobs: return the log-probability of each token and of this many best ones (raw logits).
        prompt_logprobs: the same for each prompt token.
        skip_special_tokens, include_stop_str_in_output: how text is made of tokens.
        detokenize: False returns token ids only.
        routing: what is asked of the routes to experts: RoutingOptions, or a dict that becomes such.
        return_routed_experts: return the experts of each token, and their weights.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | str = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    routing: Any = None
    return_routed_experts: bool = False

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        if self.routing is not None:
            object.__setattr__(self, "routing", RoutingOptions.of(self.routing))
        self._check_lists()

    def _check_lists(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        stop = [] if stop is None else stop
        if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
            raise RequestError(f"stop must be non-empty strings, got {self.stop!r}", "stop")
        object.__setattr__(self, "stop", list(stop))
        if stop and not self.detokenize:
            raise RequestError("stop strings need text: set detokenize=True, or use stop_token_ids", "stop")
        object.__setattr__(self, "stop_token_ids", list(self.stop_token_ids or ()))
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0)
            _number("logit_bias", bias, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature < GREEDY_EPSILON


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an int (no bool) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} must be a whole number {bounds}, got {value!r}", name)


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    """Raise unless `value` is a finite number in [low, high], or in (low, high] with `open_low`."""
    # whole numbers may be too large for a float
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not fits or value < low or value > high or (open_low and value == low):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise RequestError(f"{name} must be a number in {bounds}, got {value!r}", name)
