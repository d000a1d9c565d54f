"""The text side of the engine: prompts become checked requests, updates become outputs.

Used by the offline engine in its own process and by the API process behind its socket; torch-free.
"""

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from time import time
from typing import Any

from moesaic.core.errors import RequestError, unknown_name
from moesaic.core.messages import EngineInfo
from moesaic.core.outputs import CompletionOutput, Logprob, RequestOutput, TokenLogprobs
from moesaic.core.request import EngineRequest, LogprobRow, SequenceUpdate
from moesaic.core.routes import RoutedExperts, RoutedTokens
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.detokenizer import Detokenizer
from moesaic.engine.routing_profiles import RoutingProfiles
from moesaic.engine.tokenizer import Tokenizer

Prompt = str | Seq[int] | dict[str, Any]
TOO_LONG = "context_length_exceeded"
PROMPT_KEYS = ("prompt", "prompt_token_ids")


@dataclass(eq=False)
class _Completion:
    """One of n: what it gave so far, and how much of that was handed out (for deltas)."""

    output: CompletionOutput
    detokenizer: Detokenizer | None
    sent_text: int = 0
    sent_tokens: int = 0
    sent_routes: int = 0  # pieces of them


@dataclass(eq=False)
class _Live:
    """A request under way."""

    request: EngineRequest
    prompt: str | None
    delta: bool
    completions: list[_Completion]
    prompt_logprobs: list[TokenLogprobs | None] | None
    num_cached: int = 0
    error: str | None = None
    changed: set[int] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        return all(c.output.finished for c in self.completions)


class Frontend:
    """Checks and tokenises prompts; detokenises, ends at stop strings, and collects outputs."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer | None, profiles: RoutingProfiles | None = None) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.profiles = profiles or RoutingProfiles()
        self.profiles.fit(info.moe)
        self._live: dict[str, _Live] = {}
        self._random = random.Random(info.seed)

    # ---------------------------------------------------------------- in

    def admit(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        delta: bool = False,
    ) -> EngineRequest:
        """Check a request and remember it; the result goes to the engine.

        Args:
            prompt: text, token ids, or a dict with one of `prompt` and `prompt_token_ids`.
            delta: outputs hold only what is new since the last one.

        Raises:
            RequestError: it can never be served as it is.
        """
        if request_id in self._live:
            raise RequestError(f"request id {request_id!r} is already in use", "request_id")
        text, token_ids = self._tokens(prompt)
        self._check_tokens(token_ids)
        max_tokens = self._max_tokens(len(token_ids), params)
        self._check_vocabulary(params)
        if params.return_routed_experts and self.info.moe is None:
            raise RequestError(
                "return_routed_experts: this model has no experts that tokens are routed to: leave it out",
                "return_routed_experts",
            )
        if not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
            raise RequestError(f"priority must be a whole number of 32 bits, got {priority!r}", "priority")
        eos = [] if params.ignore_eos else self.info.eos_token_ids
        request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            max_tokens=max_tokens,
            stop_token_ids=[*params.stop_token_ids, *eos],
            eos_token_ids=[token for token in eos if token not in params.stop_token_ids],
            seed=params.seed if params.seed is not None else self._random.getrandbits(62),
            priority=priority,
            arrival_time=time(),
            cache_salt=cache_salt,
            routing=self.profiles.resolve(params.routing),
        )
        self._live[request_id] = self._begin(request, text, delta)
        return request

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text, if it was one, and the token ids of a prompt in any of its forms."""
        if isinstance(prompt, dict):
            for key in prompt:
                if key not in PROMPT_KEYS:
                    raise RequestError(unknown_name("prompt key", str(key), PROMPT_KEYS), "prompt")
            if len(prompt) != 1:
                raise RequestError("a prompt must have exactly one of 'prompt' and 'prompt_token_ids'", "prompt")
            prompt = next(iter(prompt.values()))
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("the engine runs without a tokenizer: give prompt_token_ids", "prompt")
            return prompt, self.tokenizer.encode(prompt)
        token_ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # an array or a tensor
        if not isinstance(token_ids, Seq) or not all(type(t) is int for t in token_ids):
            raise RequestError("a prompt must be text or a list of token ids", "prompt")
        return None, list(token_ids)

    def _check_tokens(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty: at least one token is needed", "prompt")
        if min(token_ids) < 0 or max(token_ids) >= self.info.vocab_size:
            wrong = next(t for t in token_ids if not 0 <= t < self.info.vocab_size)
            raise RequestError(
                f"token id {wrong} is out of range: the vocabulary has ids 0 to {self.info.vocab_size - 1}",
                "prompt",
            )

    def _max_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        """How many tokens may be generated; raises if the prompt, or both together, are too long."""
        limit = self.info.max_model_len
        if prompt_len >= limit:
            raise RequestError(
                f"the prompt has {prompt_len} tokens, but the model takes {limit} (max_model_len), "
                "at least one of them for output: shorten it",
                "prompt",
                TOO_LONG,
            )
        most = self.info.most_prompt_tokens
        if most is not None and prompt_len > most:
            raise RequestError(
                f"the prompt has {prompt_len} tokens, and this model computes prompts whole, in steps of at most "
                f"{most}: shorten it, or start with a larger --max-num-batched-tokens",
                "prompt",
                TOO_LONG,
            )
        if params.max_tokens is None:
            return limit - prompt_len
        if prompt_len + params.max_tokens > limit:
            raise RequestError(
                f"the prompt's {prompt_len} tokens and max_tokens {params.max_tokens} make "
                f"{prompt_len + params.max_tokens}, but the model takes {limit} (max_model_len): "
                f"shorten the prompt, or ask for at most {limit - prompt_len} tokens",
                "max_tokens",
                TOO_LONG,
            )
        return params.max_tokens

    def _check_vocabulary(self, params: SamplingParams) -> None:
        """Token ids inside the parameters must exist."""
        for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
            wrong = [t for t in ids if t >= self.info.vocab_size]
            if wrong:
                raise RequestError(
                    f"{name} names token {wrong[0]}, but the vocabulary has ids 0 to {self.info.vocab_size - 1}",
                    name,
                )
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer: use stop_token_ids", "stop")

    def _begin(self, request: EngineRequest, prompt: str | None, delta: bool) -> _Live:
        params = request.params
        completions = []
        for index in range(params.n):
            output = CompletionOutput(index)
            if params.logprobs is not None:
                output.logprobs, output.cumulative_logprob = [], 0.0
            if params.return_routed_experts:
                output.routed_experts = RoutedExperts()
            detokenizer = None
            if self.tokenizer is not None and params.detokenize:
                detokenizer = Detokenizer(
                    self.tokenizer,
                    request.prompt_token_ids,
                    list(params.stop),
                    skip_special_tokens=params.skip_special_tokens,
                    include_stop=params.include_stop_str_in_output,
                )
            completions.append(_Completion(output, detokenizer))
        prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        return _Live(request, prompt, delta, completions, prompt_logprobs)

    def forget(self, request_id: str) -> None:
        """Drop a request whose client is gone; later updates of it are ignored."""
        self._live.pop(request_id, None)

    @property
    def num_live(self) -> int:
        return len(self._live)

    # ---------------------------------------------------------------- out

    def process(self, updates: list[SequenceUpdate]) -> tuple[list[RequestOutput], list[tuple[str, int]]]:
        """Take one step's updates.

        Returns:
            the outputs of the requests that changed, and the (request id, index) of the sequences that ended
            here, at a stop string, and that the engine must abort.
        """
        changed: dict[str, _Live] = {}
        stopped: list[tuple[str, int]] = []
        for update in updates:
            live = self._live.get(update.request_id)
            if live is None or live.completions[update.index].output.finished:
                continue  # aborted, or ended at a stop string, while this step ran
            if self._apply(live, update):
                stopped.append((update.request_id, update.index))
            if update.new_token_ids or live.completions[update.index].output.finished:  # else it waits for a token
                changed[update.request_id] = live
        outputs = [self._output(live) for live in changed.values()]
        for output in outputs:
            if output.finished:
                del self._live[output.request_id]
        return outputs, stopped

    def _apply(self, live: _Live, update: SequenceUpdate) -> bool:
        """Book one update; True when the sequence ended at a stop string that only the text shows."""
        completion = live.completions[update.index]
        output = completion.output
        live.changed.add(update.index)
        if update.index == 0:
            live.num_cached = update.num_cached
        live.error = update.error or live.error
        if update.prompt_logprobs and live.prompt_logprobs is not None:
            live.prompt_logprobs += [self._logprobs(row) for row in update.prompt_logprobs]
        self._append(output, update)
        if update.routes is not None:
            _append_routes(live.completions, output, update.routes)
        output.finish_reason, output.stop_reason = update.finish_reason, update.stop_reason
        return self._append_text(live, completion, update)

    def _append(self, output: CompletionOutput, update: SequenceUpdate) -> None:
        output.token_ids += update.new_token_ids
        for row in update.logprobs or ():
            if output.logprobs is not None and output.cumulative_logprob is not None:
                output.logprobs.append(self._logprobs(row))
                output.cumulative_logprob += row.logprobs[0]

    def _append_text(self, live: _Live, completion: _Completion, update: SequenceUpdate) -> bool:
        detokenizer, output = completion.detokenizer, completion.output
        if detokenizer is None:
            return False
        params = live.request.params
        # a stop token is no text, except where it was asked for
        ends_in_stop = update.finish_reason == "stop" and not params.include_stop_str_in_output
        tokens = update.new_token_ids[:-1] if ends_in_stop else update.new_token_ids
        detokenizer.add(tokens, check_stop=len(output.token_ids) > params.min_tokens)
        if detokenizer.stopped is not None:
            still_running = update.finish_reason is None
            output.finish_reason, output.stop_reason = "stop", detokenizer.stopped
            output.text = detokenizer.text
            return still_running
        if output.finished:
            detokenizer.finish()
        output.text = detokenizer.text
        return False

    def _logprobs(self, row: LogprobRow) -> TokenLogprobs:
        text = self.tokenizer.token_text if self.tokenizer is not None else lambda token_id: None
        return {
            token: Logprob(value, rank, text(token))
            for token, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }

    def _output(self, live: _Live) -> RequestOutput:
        indices = sorted(live.changed) if live.delta else range(len(live.completions))
        live.changed = set()
        return RequestOutput(
            request_id=live.request.request_id,
            prompt=live.prompt,
            prompt_token_ids=live.request.prompt_token_ids,
            outputs=[_delta(live.completions[i]) if live.delta else live.completions[i].output for i in indices],
            prompt_logprobs=live.prompt_logprobs,
            finished=live.finished,
            num_cached_tokens=live.num_cached,
            error=live.error,
            routing=live.request.routing,
        )


def _append_routes(completions: list[_Completion], output: CompletionOutput, routes: RoutedTokens) -> None:
    """Book the routes of a completion's next tokens; those of prompt tokens that it shares are the first one's."""
    if output.routed_experts is None:
        return
    pieces = output.routed_experts.pieces
    end = pieces[-1].end if pieces else 0
    if routes.start > end:
        first = completions[0].output.routed_experts
        shared = [piece.between(end, routes.start) for piece in first.pieces] if first is not None else []
        pieces += [piece for piece in shared if piece is not None]
    pieces.append(routes)


def _new_routes(completion: _Completion) -> RoutedExperts | None:
    """The routes that came since a delta last had some; the prompt's wait for the first token."""
    whole = completion.output
    if whole.routed_experts is None or not (len(whole.token_ids) > completion.sent_tokens or whole.finished):
        return None
    pieces = whole.routed_experts.pieces[completion.sent_routes :]
    completion.sent_routes += len(pieces)
    return RoutedExperts(pieces)


def _delta(completion: _Completion) -> CompletionOutput:
    """What a completion gained since the last call."""
    whole = completion.output
    part = CompletionOutput(
        whole.index,
        text=whole.text[completion.sent_text :],
        token_ids=whole.token_ids[completion.sent_tokens :],
        cumulative_logprob=whole.cumulative_logprob,
        logprobs=None if whole.logprobs is None else whole.logprobs[completion.sent_tokens :],
        finish_reason=whole.finish_reason,
        stop_reason=whole.stop_reason,
        routed_experts=_new_routes(completion),
    )
    completion.sent_text, completion.sent_tokens = len(whole.text), len(whole.token_ids)
    return part
