"""Every sampling parameter out of its range is refused by name; every one in its range is taken."""

import math

import pytest

from moesaic import SamplingParams
from moesaic.core.errors import ConfigError, RequestError

WRONG = [
    ("n", 0), ("n", 129), ("n", 1.5), ("n", True),
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
    ("top_p", 0), ("top_p", 1.1), ("top_p", -1),
    ("top_k", -2), ("top_k", 1.5),
    ("min_p", -0.1), ("min_p", 1.1),
    ("presence_penalty", 2.1), ("presence_penalty", -2.1),
    ("frequency_penalty", 2.1), ("frequency_penalty", math.nan),
    ("repetition_penalty", 0), ("repetition_penalty", -1),
    ("seed", "x"), ("seed", 1.5), ("seed", 2**64),
    ("stop", [""]), ("stop", [1]), ("stop", 5),
    ("stop_token_ids", [-1]), ("stop_token_ids", ["a"]),
    ("max_tokens", 0), ("max_tokens", 2.5), ("min_tokens", -1), ("min_tokens", 17),
    ("logit_bias", {1: 101.0}), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: math.nan}),
    ("logprobs", -1), ("logprobs", 101), ("prompt_logprobs", -1),
    ("ignore_eos", "yes"), ("skip_special_tokens", 1), ("detokenize", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}={v!r}" for n, v in WRONG])
def test_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_edges_of_the_ranges_are_taken():
    SamplingParams(n=128, temperature=0, top_p=1, top_k=-1, min_p=1, presence_penalty=-2, frequency_penalty=2)
    SamplingParams(repetition_penalty=0.01, seed=-(2**63), max_tokens=None, min_tokens=5, logprobs=0)
    SamplingParams(seed=2**64 - 1, logit_bias={0: -100.0, 5: 100}, logprobs=100, stop="end")


def test_an_unknown_argument_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match="'tempratur': did you mean 'temperature'"):
        SamplingParams(tempratur=1)


def test_stop_strings_need_text():
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_greedy_is_temperature_zero():
    assert SamplingParams(temperature=0).greedy and not SamplingParams().greedy
