"""What requests may ask of their routes: checks, folding, keys, and the way through msgpack."""

from typing import Any

import msgspec
import pytest

from moesaic.core.errors import RequestError
from moesaic.core.request import EngineRequest
from moesaic.core.routing import LayerShape, MoeShape, RequestRouting, RoutesKey, fold, resolve
from moesaic.core.routing_options import RoutingOptions, RoutingRule
from moesaic.core.sampling_params import SamplingParams

SHAPE = MoeShape([LayerShape(1, 4, 2), LayerShape(3, 8, 2)])


def resolved(shape: MoeShape | None = SHAPE, **options: Any) -> RequestRouting | None:
    return resolve(RoutingOptions.of(options), shape)


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"top_k": 0}, "routing.top_k", "at least 1, got 0"),
        ({"top_k": True}, "routing.top_k", "at least 1"),
        ({"top_k": 5}, "routing.top_k", "is 5, and layer 1 has 4 experts"),
        ({"ban": [0, 1, 2, 3]}, "routing.ban", "leaves none of the 4 experts of layer 1"),
        ({"allow": []}, "routing.allow", "leaves none"),
        ({"allow": [1], "ban": [1]}, "routing.ban", "leaves none"),
        ({"ban": [9], "layers": [3]}, "routing.ban", "names expert 9, and layer 3 has experts 0 to 7"),
        ({"allow": [-1]}, "routing.allow", "at least 0"),
        ({"bias": [1.0, 2.0]}, "routing.bias", "has 2 numbers, and layer 1 has 4 experts"),
        ({"bias": {"4": 1.0}}, "routing.bias", "names expert 4"),
        ({"bias": {"x": 1.0}}, "routing.bias", "experts' numbers"),
        ({"bias": [0.0, float("nan"), 0.0, 0.0]}, "routing.bias", "finite"),
        ({"bias": [0.0, float("inf"), 0.0, 0.0]}, "routing.bias", "finite"),
        ({"bias": "high"}, "routing.bias", "list of numbers"),
        ({"layers": [2]}, None, ""),
        ({"layers": [2], "top_k": 1}, "routing.layers", "names layer 2, and the layers with experts are 1, 3"),
        ({"layers": []}, "routing.layers", "names no layer"),
        ({"temperature": 0}, "routing.temperature", "0.001 to 1000"),
        ({"temperature": float("nan")}, "routing.temperature", "must be a number"),
        ({"tags": "finance"}, "routing.tags", "list of texts"),
        ({"tags": [""]}, "routing.tags", "1 to 128 characters"),
        ({"tags": [str(i) for i in range(33)]}, "routing.tags", "at most 32"),
        ({"profile": 3}, "routing.profile", "name"),
        ({"topk": 3}, "routing.topk", "did you mean 'top_k'?"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], param: str | None, words: str) -> None:
    if param is None:
        assert resolved(**options) is None
        return
    with pytest.raises(RequestError) as caught:
        resolved(**options)
    assert caught.value.param == param
    assert words in str(caught.value)


def test_models_that_cannot() -> None:
    assert resolved(None, tags=["a"]) == RequestRouting(tags=["a"])
    with pytest.raises(RequestError, match="this model has none"):
        resolved(None, top_k=1)
    with pytest.raises(RequestError, match="cannot be changed: because"):
        resolved(MoeShape(SHAPE.layers, "because"), top_k=1)


def test_sampling_params_take_a_dict() -> None:
    params = SamplingParams(routing={"top_k": 1, "bias": {"3": 1}, "tags": ["b", "a", "b"], "ban": None})
    assert params.routing == RoutingOptions(top_k=1, bias={3: 1.0}, tags=["b", "a"])
    with pytest.raises(RequestError, match="routing must be an object"):
        SamplingParams(routing=[1])
    with pytest.raises(RequestError, match="return_routed_experts must be true or false"):
        SamplingParams(return_routed_experts=1)  # type: ignore[arg-type]


def test_rules_fold_in_order() -> None:
    rules = [
        RoutingRule(top_k=1, ban=[0], bias={1: 2.0}, temperature=2.0),
        RoutingRule(layers=[3], top_k=4, allow=[0, 1, 2], bias=[1.0] * 8),
    ]
    first, second = (fold(rules, layer) for layer in SHAPE.layers)
    assert (first.top_k, first.banned, first.bias, first.temperature) == (1, (0,), (0.0, 2.0, 0.0, 0.0), 2.0)
    assert (second.top_k, second.banned, second.temperature) == (4, (0, 3, 4, 5, 6, 7), 2.0)
    assert second.bias == (1.0, 3.0, *[1.0] * 6)


def test_a_profile_comes_first_and_can_leave_nothing() -> None:
    profile = [RoutingRule(ban=[0, 1])]
    routing = resolve(RoutingOptions(top_k=1), SHAPE, profile, "thrifty", "2")
    assert routing == RequestRouting(rules=[*profile, RoutingRule(top_k=1)], profile="thrifty", version="2")
    with pytest.raises(RequestError, match="leaves none"):
        resolve(RoutingOptions(layers=[1], ban=[2, 3]), SHAPE, profile, "thrifty", "2")


def test_keys_tell_routes_apart() -> None:
    variants = [
        resolved(top_k=1),
        resolved(top_k=2),
        resolved(ban=[1]),
        resolved(allow=[1]),
        resolved(bias={1: 1.0}),
        resolved(temperature=2),
        resolved(top_k=1, layers=[3]),
        resolve(None, SHAPE, [RoutingRule(top_k=1)], "p", "1"),
        resolve(None, SHAPE, [RoutingRule(top_k=1)], "p", "2"),
    ]
    plain, tagged = RoutesKey(), RoutesKey(server="f", reads_tags=True)
    keys = [plain.of(routing) for routing in variants]
    assert len(set(keys)) == len(variants) and "" not in keys
    finance, law = resolved(tags=["finance"]), resolved(tags=["law"])
    assert plain.of(finance) == plain.of(law) == plain.of(None) == ""
    assert len({tagged.of(finance), tagged.of(law), tagged.of(None), ""}) == 4
    assert tagged.of(resolved(tags=["a", "b"])) == tagged.of(resolved(tags=["b", "a"]))


def test_they_cross_processes() -> None:
    params = SamplingParams(routing={"bias": {2: 1.5}, "tags": ["x"]})
    routing = resolve(params.routing, SHAPE)
    request = EngineRequest(
        request_id="r",
        prompt_token_ids=[1],
        params=params,
        max_tokens=1,
        stop_token_ids=[],
        eos_token_ids=[],
        seed=0,
        routing=routing,
    )
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=EngineRequest)
    assert back == request
    assert back.routing is not None and back.routing.key == routing.key  # type: ignore[union-attr]
