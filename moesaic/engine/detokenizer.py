"""From a stream of token ids to a stream of text: whole characters only, and nothing of a stop string."""

from moesaic.engine.tokenizer import Tokenizer

# Tokens of the prompt's end that are decoded along with the first output, for decoders whose spaces depend
# on what stands before.
CONTEXT_TOKENS = 6
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental text of one sequence.

    Text is decoded from a short window of tokens, since a token's text may depend on its neighbours; what ends
    in an incomplete character waits for the next token. Text that could be the beginning of a stop string is
    held back until that is decided.

    Attributes:
        text: all text that may be shown so far.
        stopped: the stop string that ended it, if one did.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        stop: list[str],
        *,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop = stop
        self._include_stop = include_stop
        self._window = prompt[-CONTEXT_TOKENS:]
        self._window_text = self._decode(self._window)  # text of the window that is already in `_decoded`
        self._decoded = ""
        self.text = ""
        self.stopped: str | None = None

    def add(self, token_ids: list[int], check_stop: bool = True) -> None:
        """Take new tokens; `text` and `stopped` tell the result.

        Args:
            check_stop: False while min_tokens is not reached.
        """
        for token_id in token_ids:
            self._take(token_id)
        self._show(check_stop)

    def finish(self) -> None:
        """No token follows: show what was held back (an incomplete character as U+FFFD)."""
        if self.stopped is None:
            text = self._decode(self._window)
            self._decoded += text[len(self._window_text) :]
            self.text = self._decoded

    def _take(self, token_id: int) -> None:
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._window_text) or text.endswith(REPLACEMENT):
            return  # nothing yet, or half a character
        self._decoded += text[len(self._window_text) :]
        if len(self._window) > 2 * CONTEXT_TOKENS:
            self._window = self._window[-CONTEXT_TOKENS:]
            text = self._decode(self._window)
        self._window_text = text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skip_special_tokens)

    def _show(self, check_stop: bool) -> None:
        if not self._stop:
            self.text = self._decoded
            return
        if check_stop and self._cut_at_stop():
            return
        held = max(_overlap(self._decoded, stop) for stop in self._stop)
        self.text = self._decoded[: len(self._decoded) - held]

    def _cut_at_stop(self) -> bool:
        """End the text at the stop string that occurs first, if one does."""
        # no stop string begins in what is shown: its beginning would have been held back
        found = [(at, stop) for stop in self._stop if (at := self._decoded.find(stop, len(self.text))) >= 0]
        if not found:
            return False
        at, self.stopped = min(found)
        self.text = self._decoded[: at + len(self.stopped) if self._include_stop else at]
        return True


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, short of all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
