"""Incremental text equals the text of all tokens, never shows half a character, and never shows a stop string."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.engine.detokenizer import REPLACEMENT, Detokenizer
from moesaic.engine.tokenizer import Tokenizer
from tests.conftest import EMBEDDED

TOKENIZER = Tokenizer(str(EMBEDDED))
TEXT = st.text(alphabet=st.sampled_from('abc {}":,\n0189éß漢字🙂🇫🇷👩‍🚀.'), max_size=40)


def stream(token_ids: list[int], prompt: list[int] | None = None, stop: list[str] | None = None, **kwargs):
    """Every state of the text, one a token and one at the end; and the detokeniser."""
    detokenizer = Detokenizer(TOKENIZER, prompt or [], stop or [], **kwargs)
    states = []
    for token in token_ids:
        detokenizer.add([token])
        states.append(detokenizer.text)
        if detokenizer.stopped is not None:
            return states, detokenizer
    detokenizer.finish()
    return [*states, detokenizer.text], detokenizer


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT)
def test_the_stream_is_the_text(prompt, text):
    states, _ = stream(TOKENIZER.encode(text), TOKENIZER.encode(prompt))
    assert states[-1] == text
    assert all(REPLACEMENT not in state for state in states), "half a character was shown"
    assert all(text.startswith(state) for state in states)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_any_tokens_give_what_decoding_them_whole_gives(token_ids):
    states, _ = stream(token_ids, skip_special_tokens=False)
    assert states[-1] == TOKENIZER.decode(token_ids, skip_special_tokens=False)
    for before, after in itertools.pairwise(states):
        assert after.startswith(before), "text that was shown changed"


@settings(max_examples=200, deadline=None)
@given(TEXT, st.lists(st.text(alphabet='abc {}":1é漢', min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_stop_strings_across_tokens(text, stop, include):
    states, detokenizer = stream(TOKENIZER.encode(text), stop=stop, include_stop=include)
    found = [(text.find(s), s) for s in stop if s in text]
    if not found:
        assert detokenizer.stopped is None and states[-1] == text
        return
    assert detokenizer.stopped in stop
    shown = states[-1].removesuffix(detokenizer.stopped) if include else states[-1]
    assert text.startswith(shown + detokenizer.stopped)
    assert not any(s in shown for s in stop), "a stop string was passed over"
    assert all(shown.startswith(state) for state in states[:-1]), "something of a stop string was shown"


def test_stop_is_not_looked_for_before_min_tokens():
    tokens = TOKENIZER.encode("abc abc abc")
    detokenizer = Detokenizer(TOKENIZER, [], ["abc"])
    for token in tokens[:-1]:
        detokenizer.add([token], check_stop=False)
    assert detokenizer.stopped is None and detokenizer.text.startswith("abc")


def test_an_incomplete_character_at_the_end_becomes_a_replacement():
    tokens = TOKENIZER.encode("漢")
    if len(tokens) == 1:
        pytest.skip("the tokeniser has this character as one token")
    states, _ = stream(tokens[:-1])
    assert states[:-1] == [""] * (len(tokens) - 1) and REPLACEMENT in states[-1]


def test_special_tokens_are_skipped_or_shown():
    end = TOKENIZER.encode("<|end|>")
    assert len(end) == 1
    assert stream(end)[0][-1] == ""
    assert stream(end, skip_special_tokens=False)[0][-1] == "<|end|>"
