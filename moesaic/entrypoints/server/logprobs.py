"""Log-probabilities in the three shapes that clients know: completions', chat's, and vLLM's of prompts."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from moesaic.core.outputs import Logprob, TokenLogprobs
from moesaic.entrypoints.server.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)

if TYPE_CHECKING:
    from moesaic.engine.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity


def _value(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)


def _text(token_id: int, logprob: Logprob) -> str:
    return logprob.decoded_token if logprob.decoded_token is not None else f"token_id:{token_id}"


def for_completion(
    token_ids: Sequence[int], rows: Sequence[TokenLogprobs | None], offset: int, tokenizer: "Tokenizer | None"
) -> CompletionLogprobs:
    """The legacy shape: parallel lists.

    Args:
        rows: one a token; None for a prompt's first, which nothing predicts.
        offset: where the first token begins in the choice's text.
    """
    unknown = Logprob(0.0, 0)
    tokens = [
        _text(token, row[token])
        if row is not None
        else tokenizer.token_text(token)
        if tokenizer
        else _text(token, unknown)
        for token, row in zip(token_ids, rows, strict=True)
    ]
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[
            None if row is None else _value(row[token]) for token, row in zip(token_ids, rows, strict=True)
        ],
        top_logprobs=[None if row is None else _by_text(row) for row in rows],
        text_offset=list(accumulate((len(text) for text in tokens[:-1]), initial=offset)) if tokens else [],
    )


def _by_text(row: TokenLogprobs) -> dict[str, float]:
    """Text -> log-probability; of tokens with one text the first stays: the chosen, else the best."""
    best: dict[str, float] = {}
    for token, logprob in row.items():
        best.setdefault(_text(token, logprob), _value(logprob))
    return best


def for_chat(rows: Sequence[TokenLogprobs], top: int, tokenizer: "Tokenizer | None") -> ChatLogprobs:
    """Chat's shape: an object a token, with its bytes and its `top` best rivals."""

    def spelled(token: int) -> list[int] | None:
        return list(tokenizer.token_bytes(token)) if tokenizer is not None else None

    content = []
    for row in rows:
        chosen, logprob = next(iter(row.items()))
        best = sorted(row.items(), key=lambda item: item[1].rank)[:top]
        content.append(
            TokenLogprob(
                _text(chosen, logprob),
                _value(logprob),
                spelled(chosen),
                [TopLogprob(_text(token, other), _value(other), spelled(token)) for token, other in best],
            )
        )
    return ChatLogprobs(content)


def for_prompt(rows: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """vLLM's shape: by token id."""
    return [None if row is None else {str(token): _prompt_entry(entry) for token, entry in row.items()} for row in rows]


def _prompt_entry(entry: Logprob) -> dict[str, Any]:
    return {"logprob": _value(entry), "rank": entry.rank, "decoded_token": entry.decoded_token}
