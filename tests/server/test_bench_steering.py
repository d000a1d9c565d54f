"""`python -m benchmarks.steering`, small: its settings do what they are called, its tables say what was measured."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import steering
from benchmarks.steering_report import SHARES
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.core.routing_profile import make_profile
from moesaic.entrypoints.bench.report import Figure
from moesaic.experts.profile_file import RouteProfile

SHAPE = MoeShape([LayerShape(0, 8, 2), LayerShape(3, 8, 2)])


@pytest.fixture
def routes():
    """Domain d gives expert e of layer i the weight ((e + 3 d + i) mod 8)²."""
    weights = np.array([[[((e + 3 * d + i) % 8) ** 2.0 for e in range(8)] for i in range(2)] for d in range(3)])
    weights = np.concatenate([weights.sum(0)[None], weights])
    counts = weights.astype(np.int64)
    pairs = np.zeros((2, 28), np.int32)
    tags = list(steering.DOMAINS)
    return RouteProfile("m", [0, 3], [8, 8], [2, 2], tags, 9, [3, 3, 3], False, counts, weights, pairs)


def test_every_setting_is_a_profile_that_fits(routes):
    made = {name: make_profile({"name": "x", "rules": rules}) for name, rules in steering.settings(routes).items()}
    for profile in made.values():
        profile.check(SHAPE)
    rules = {name: profile.rules_for(["json"]) for name, profile in made.items()}
    # json, d = 1: in layer 0 expert e has ((e + 3) mod 8)², so 5 the least, then 6, 7, 0 ...; 4 the most
    assert rules[steering.OWN] == [] and [rule.top_k for rule in rules["top-k 3"]] == [3]
    assert [rule.ban for rule in rules["without 25% by domain"]] == [[5, 6], [4, 5]]
    assert [rule.ban for rule in rules["without 87.5% by domain"]] == [[0, 1, 2, 5, 6, 7], [0, 1, 4, 5, 6, 7]]
    assert [rule.ban for rule in rules["without the 25% that carry most"]] == [[3, 4], [2, 3]]
    bias, double = (rules[f"bias to its own, {strength}"][0].bias for strength in (1, 2))
    assert len(bias) == 8 and max(bias) > 0 > min(bias) and double == pytest.approx([2 * b for b in bias], abs=2e-3)
    shares = np.array([[((e + 3 * d) % 8) ** 2 for e in range(8)] for d in range(3)]) / 140
    assert bias[3] == pytest.approx(np.log(shares[1, 3] / shares[:, 3].mean()), abs=0.01)


def test_tables(routes, tmp_path):
    figures = [
        Figure(bench="b", case="own", metric="m", unit="share", samples=[0.5]),
        Figure(bench="b", case="other", metric="m", unit="share", samples=[0.4], baseline=0.5),
        Figure(bench="b", case="other", metric="t", unit="ms", samples=[3.0, 5.0], baselines=[2.0, 2.0]),
        Figure(bench="b", case="own", metric="t", unit="ms", samples=[2.0]),
    ]
    table = steering.markdown(figures).splitlines()
    assert table == [
        "| routes | m | t |",
        "|---|---|---|",
        "| own | 50.0 % | 2.00 ms |",
        "| other | 40.0 % (-10.0) | 4.00 ms (2.00 ×) |",
    ]
    assert "| 0 | **7** 35 %, **6** 26 %" in steering.preferences(routes)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    steering.put(page, "x", "new\nlines")
    assert page.read_text() == "a\n<!-- x -->\nnew\nlines\n<!-- /x -->\nb\n"
    with pytest.raises(Exception, match="no marks for 'y'"):
        steering.put(page, "y", "")


def test_a_run(monkeypatch, tmp_path):
    """Of two settings: the model's own routes, and experts left that know little of sums."""
    whole = steering.settings
    kept = (*steering.SPEED_CASES, "without the 25% that carry most")

    def few(routes):
        return {name: rules for name, rules in whole(routes).items() if name in kept}

    monkeypatch.setattr(steering, "settings", few)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {n} -->\n\n<!-- /{n} -->\n" for n in ("preferences", "scores", "cross", "times")))
    asked = ["--count", "8", "--runs", "1", "--threads", "1", "--json-only", "--page", str(page)]
    result = CliRunner().invoke(steering.main, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    scores = {(line["case"], line["metric"]): line for line in lines}
    assert scores[steering.OWN, "additions"]["value"] > 0.9 and scores[steering.OWN, "additions"]["baseline"] is None
    worse = scores["without the 25% that carry most", "additions"]
    assert worse["value"] < 0.7 < worse["baseline"]
    assert scores["top-k 1", "decode step, batch 16"]["ratio"] > 0
    own, other = (scores[f"without 50% by {tag}", "additions"]["value"] for tag in ("arithmetic", "prose"))
    assert own > other
    text = page.read_text()
    assert f"| {steering.OWN} | 100.0 %" in text and "| without 50% by json |" in text and " ×)" in text


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    pruned = [f"without {100 * share:g}% by {whose}" for whose in ("domain", "all domains") for share in SHARES]
    cases = [steering.OWN, "top-k 1", *pruned]
    figures = [
        Figure(bench="b", case=case, metric=metric, unit="share", samples=[0.1 * i])
        for metric in ("x", "y")
        for i, case in enumerate(cases)
    ]
    times = [Figure(bench="b", case="top-k 1", metric=m, unit="ms", samples=[1.0], baselines=[2.0]) for m in "pq"]
    for given in (figures, figures + times):
        steering.draw(given, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
