"""From recorded routes to a routing profile without the experts that carry least, and what that does to a model.

Of each layer, the share asked for of its experts is banned (rounded down), least routing weight first: the sum of the
weights that the recorded tokens gave an expert, so that one that is chosen often and counts for little goes before one
that is chosen seldom and counts. As many experts stay as a token has choices.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesaic.core.errors import ConfigError, RequestError
from moesaic.core.routing_profile import RoutingProfile, make_profile
from moesaic.core.sampling_params import SamplingParams
from moesaic.experts.profile_file import RouteProfile

if TYPE_CHECKING:
    from moesaic.engine.llm import LLM


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning does to a layer.

    Attributes:
        layer: its decoder layer's index.
        tag: of the requests that it is for; None for all.
        banned: experts, in order.
        lost: the share of the layer's routing weight that the banned ones carried.
    """

    layer: int
    tag: str | None
    banned: list[int]
    lost: float


@dataclass(frozen=True)
class Effect:
    """What a routing does to the answers that a model gives with its own routes.

    Attributes:
        perplexity: of these answers with the model's own routes.
        steered_perplexity: of the same with the other ones.
        agreement: the share of their tokens that are the likeliest with the others too.
        tokens: of the answers.
    """

    perplexity: float
    steered_perplexity: float
    agreement: float
    tokens: int


def parse_share(text: str) -> float:
    """0.25 of `25%` or `0.25`. Raises ConfigError unless it lies between 0 and 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 < share < 1:
        raise ConfigError(f"the share of experts to prune must be above 0% and below 100%, such as 25%; got {text!r}")
    return share


def prune(routes: RouteProfile, share: float, tags: Sequence[str] = ()) -> list[PrunedLayer]:
    """What to ban of each layer, for all requests; or, where tags are given, for those with each of them, by what these
    were recorded to do. (A request with two such tags loses what either bans.)

    Raises:
        ConfigError: a tag was not recorded, or nothing was.
    """
    pruned = []
    for tag in tags or (None,):
        if tag is not None and tag not in routes.tags:
            raise ConfigError(
                f"no routes of the tag {tag!r} were recorded: there are {', '.join(routes.tags) or 'none'}"
            )
        for layer, row in routes.feed_forwards.items():
            weights = routes.of(tag)[1][row]
            if not weights.sum() > 0:
                whose = "" if tag is None else f" of the tag {tag!r}"
                raise ConfigError(f"no routes{whose} were recorded in layer {layer}: nothing to prune by")
            banned = least(weights, min(int(share * len(weights)), len(weights) - routes.top_k[row]))
            lost = float(weights[banned].sum() / weights.sum())
            pruned.append(PrunedLayer(layer, tag, banned, lost))
    return pruned


def least(weights: NDArray[np.float64], count: int) -> list[int]:
    """The `count` experts of least weight, in order of their ids; of equal ones those of the higher ids."""
    order = np.lexsort((-np.arange(len(weights)), weights))
    return sorted(order[: max(0, count)].tolist())


def pruning_profile(name: str, description: str, pruned: Sequence[PrunedLayer]) -> RoutingProfile:
    """The profile that bans them; raises ConfigError where nothing is banned."""
    rules: list[dict[str, Any]] = [
        ({} if layer.tag is None else {"tags": [layer.tag]}) | {"layers": [layer.layer], "ban": layer.banned}
        for layer in pruned
        if layer.banned
    ]
    if not rules:
        raise ConfigError("nothing is pruned: no layer has so many experts beyond those that a token needs")
    return make_profile({"name": name, "description": description, "rules": rules})


def measure_effect(llm: "LLM", prompts: Sequence[list[int]], routings: Sequence[Any], max_tokens: int = 64) -> Effect:
    """What `routings` (options of `SamplingParams.routing`, one a prompt) do to a model's greedy answers.

    The model answers with its own routes. Then prompts and answers are read both ways, with and without the options,
    each token given those before it.
    """
    own = {"profile": ""}
    greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens, routing=own)
    answers = [output.outputs[0].token_ids for output in llm.generate(list(prompts), greedy, use_tqdm=False)]
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]

    def read(options: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each token of the answers: its log-probability, and whether it is the likeliest."""
        params = [
            SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, routing=option) for option in options
        ]
        rows: list[tuple[float, bool]] = []
        for output, answer in zip(llm.generate(whole, params, use_tqdm=False), answers, strict=True):
            assert output.prompt_logprobs is not None
            for token, row in zip(
                answer, output.prompt_logprobs[len(output.prompt_logprobs) - len(answer) :], strict=True
            ):
                assert row is not None
                rows.append((row[token].logprob, row[token].rank == 1))
        return rows

    before, after = read([own] * len(whole)), read(routings)
    if not before:
        raise RequestError("the model answers none of the prompts: there is nothing to measure on", "prompt")
    perplexities = [math.exp(-sum(logprob for logprob, _ in rows) / len(rows)) for rows in (before, after)]
    return Effect(*perplexities, sum(likeliest for _, likeliest in after) / len(after), len(after))
