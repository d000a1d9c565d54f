"""What pruning bans: the experts of least routing weight of each layer, by tag, never more than a token can spare."""

from dataclasses import replace

import numpy as np
import pytest

from moesaic.adapt.pruning import parse_share, prune, pruning_profile
from moesaic.core.errors import ConfigError
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.core.routing_profile import read_profile, to_toml
from moesaic.experts.profile_file import RouteProfile, hottest

# of all, then of the tag "sums": two layers, of 4 and of 3 experts
WEIGHTS = [[[4.0, 1.0, 3.0, 2.0], [5.0, 5.0, 1.0, 0.0]], [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 0.0]]]
SHAPE = MoeShape([LayerShape(2, 4, 2), LayerShape(5, 3, 2)])


def routes(weights=WEIGHTS):
    weights = np.array(weights)
    return RouteProfile(
        model="m",
        layers=[2, 5],
        num_experts=[4, 3],
        top_k=[2, 2],
        tags=["sums"],
        tokens=10,
        tokens_of_tags=[3],
        tags_left_out=False,
        counts=(weights[:, :, ::-1] > 0).astype(np.int64),  # the counts say otherwise: it is weight that matters
        weights=weights,
        pairs=np.zeros((2, 6), np.int32),
    )


@pytest.mark.parametrize(
    ("share", "banned"),
    [(0.2, [[], []]), (0.25, [[1], []]), (0.34, [[1], [2]]), (0.5, [[1, 3], [2]]), (0.99, [[1, 3], [2]])],
)
def test_the_least_of_each_layer(share, banned):
    pruned = prune(routes(), share)
    assert [layer.banned for layer in pruned] == banned and [layer.layer for layer in pruned] == [2, 5]
    lost = [sum(WEIGHTS[0][row][e] for e in gone) / sum(WEIGHTS[0][row]) for row, gone in enumerate(banned)]
    assert [layer.lost for layer in pruned] == pytest.approx(lost)


def test_of_a_layer_whose_attention_has_experts_too_the_feed_forward():
    both = replace(routes(), layers=[2, 2])
    assert [(layer.layer, layer.banned) for layer in prune(both, 0.5)] == [(2, [2])]
    assert hottest(both, 0.5) == {2: [0, 1]}


def test_by_tag_and_equal_weights(tmp_path):
    pruned = prune(routes(), 0.5, ["sums"])
    assert [(layer.tag, layer.banned) for layer in pruned] == [("sums", [0, 1]), ("sums", [2])]
    profile = pruning_profile("half", "d", pruned)
    profile.check(SHAPE)
    (tmp_path / "half.toml").write_text(to_toml(profile))
    assert read_profile(tmp_path / "half.toml") == profile
    assert [rule.ban for rule in profile.rules_for([])] == []
    assert [rule.ban for rule in profile.rules_for(["sums"])] == [[0, 1], [2]]


def test_what_cannot_be_pruned():
    with pytest.raises(ConfigError, match="nothing is pruned"):
        pruning_profile("x", "", prune(routes(), 0.2))
    with pytest.raises(ConfigError, match="no routes of the tag 'json' were recorded: there are sums"):
        prune(routes(), 0.5, ("json",))
    with pytest.raises(ConfigError, match="no routes were recorded in layer 2"):
        prune(routes(np.zeros((2, 2, 4))), 0.5)


def test_shares():
    assert parse_share("25%") == parse_share(" 0.25 ") == parse_share(".25") == 0.25
    for text in ("0", "100%", "1", "-5%", "x", "", "25 percent", "nan", "1e-1"):
        with pytest.raises(ConfigError, match="such as 25%"):
            parse_share(text)
