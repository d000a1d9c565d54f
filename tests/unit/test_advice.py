"""The tree of `moesaic advise`: each leaf is reached by figures of its own, and figures that are well reach none."""

import re
from dataclasses import replace

import pytest

from moesaic.advice.branches import BRANCHES
from moesaic.advice.exposition import Metrics, quantile
from moesaic.advice.figures import Figures, LayerLoad, Times
from moesaic.advice.reading import figures_of
from moesaic.advice.report import advise
from moesaic.advice.tree import Advice, nodes, walk
from moesaic.core.errors import ConfigError

EVEN = LayerLoad("layer 3", num_experts=16, choices=10**6, utilization=1.0, imbalance=1.2, entropy=0.99, busiest=5)
QUICK = Times(count=500, mean=0.02, median=0.02, p95=0.03)
WELL = Figures(
    model="m",
    layers=[EVEN, replace(EVEN, name="layer 4")],
    compute_efficiency=0.97,
    kv_usage=0.5,
    kv_fragmentation=0.1,
    expert_fragmentation=0.01,
    running=4,
    finished=500,
    generated_tokens=50_000,
    tokens_per_step=20.0,
    step_seconds=0.02,
    outside_model=0.03,
    routing_share=0.02,
    first_token=QUICK,
    inter_token=QUICK,
    queue=replace(QUICK, mean=0.001),
)
LATE = Times(count=500, mean=2.0, median=1.5, p95=4.0)
HOT = replace(EVEN, imbalance=3.5, entropy=0.9)
FUNCTION = ["--moe-routing-func mine:route"]


def changed(**values):
    return replace(WELL, **values)


# a word that stands in one leaf alone -> figures that lead there
LEAVES = [
    ("POST /v1/moe/routing", changed(layers=[EVEN, HOT], steered_by=FUNCTION)),
    ("a part of the experts", changed(layers=[EVEN, replace(HOT, entropy=0.6)])),
    ("One expert is hot", changed(layers=[HOT, EVEN])),
    ("moesaic prune", changed(layers=[EVEN, replace(EVEN, utilization=0.5, dead=range(8))])),
    ("Leave out --enable-moe-block-align", changed(compute_efficiency=0.4, flags={"moe_block_size": 512})),
    ("Leave out --enable-moe-block-align", changed(compute_efficiency=0.4, flags={"enable_moe_block_align": True})),
    ("held back", changed(compute_efficiency=0.2, tokens_per_step=2.0, waiting=3, flags={"moe_block_size": None})),
    ("Each expert gets few rows", changed(compute_efficiency=0.4)),
    ("held back", changed(waiting=3)),
    ("a preempted sequence is computed again", changed(preemptions=50, flags={"kv_cache_dtype": "bfloat16"})),
    ("or w4a16: experts are most of them). Else", changed(preemptions=50, flags={"kv_cache_dtype": "int8"})),
    ("a smaller max_tokens", changed(kv_usage=0.95, waiting=2)),
    ("lower --block-size", changed(kv_fragmentation=0.6, kv_usage=0.8)),
    ("Pages are padded", changed(expert_fragmentation=0.5)),
    ("no setting makes a full machine quick", changed(first_token=LATE, queue=LATE, kv_usage=0.95)),
    ("so that requests begin", changed(first_token=LATE, queue=LATE)),
    ("Prompts take that long", changed(first_token=LATE)),
    ("stall decoding", changed(inter_token=Times(500, 0.06, 0.04, 0.4))),
    ("Steps are that slow throughout", changed(inter_token=Times(500, 0.2, 0.2, 0.3))),
    ("without loops over tokens", changed(routing_share=0.3, steered_by=FUNCTION)),
    ("routers weigh more than elsewhere", changed(routing_share=0.3)),
    ("what surrounds it", changed(outside_model=0.4)),
]


def findings(figures):
    return [finding for branch in BRANCHES for finding in walk(branch, figures).findings]


@pytest.mark.parametrize(("words", "figures"), LEAVES)
def test_each_leaf_is_reached_by_its_figures(words, figures):
    [found] = findings(figures)
    assert words in found.advice
    assert re.search(r"\d", found.problem), found.problem


def test_what_has_one_cause_is_one_finding():
    slow = changed(inter_token=Times(500, 0.2, 0.2, 0.3), routing_share=0.3, steered_by=FUNCTION)
    [found] = findings(slow)
    assert "next token within 300 ms" in found.problem and "without loops over tokens" in found.advice
    assert [reason for reason in found.because if "30.0% of a step" in reason]
    banned = changed(layers=[replace(HOT, utilization=0.5)], steered_by=["the routing profile 'p'"])
    [found] = findings(banned)
    assert [reason for reason in found.because if "50% of the experts" in reason]


def test_few_clients_have_small_steps_and_nothing_to_change():
    assert not findings(changed(compute_efficiency=1 / 6, tokens_per_step=1.0))


def test_a_queue_behind_preemptions_asks_for_memory_and_not_for_more_sequences():
    found = findings(changed(first_token=LATE, queue=LATE, preemptions=50))
    assert len(found) == 2 and not [one for one in found if "Raise --max-num-seqs" in one.advice]


def test_no_leaf_is_left_out():
    texts = {node.text for node in nodes(BRANCHES) if isinstance(node, Advice)}
    reached = {finding.advice for _, figures in LEAVES for finding in findings(figures)}
    assert reached == texts


def test_all_is_well():
    outcomes = [walk(branch, WELL) for branch in BRANCHES]
    assert not [outcome.findings for outcome in outcomes if outcome.findings]
    assert all(outcome.figures and not outcome.unknown for outcome in outcomes)


def test_what_is_not_known_is_said_and_not_advised():
    outcomes = [walk(branch, Figures(generated_tokens=5)) for branch in BRANCHES]
    assert not [outcome.findings for outcome in outcomes if outcome.findings]
    assert all(outcome.unknown for outcome in outcomes)


def test_a_handful_of_tokens_says_nothing_of_a_router():
    few = changed(layers=[replace(HOT, choices=99 * 16, utilization=0.1)])
    assert not findings(few)
    assert findings(replace(few, layers=[replace(few.layers[0], choices=100 * 16)]))


# ---------------------------------------------------------------- reading


def scrape(**values):
    """Prometheus's text with these metrics; a dict's keys are labels as they are written."""
    lines = ['moesaic_info{model="m",architecture="A",dtype="bfloat16",device="cpu"} 1.0']
    for name, value in values.items():
        for labels, number in value.items() if isinstance(value, dict) else [("", value)]:
            lines.append(f"moesaic_{name}{labels} {number}")
    return "\n".join(lines) + "\n"


def buckets(**counts):
    return {f'{{le="{bound}"}}': count for bound, count in counts.items()}


def test_counters_become_shares():
    figures = figures_of(
        Metrics(
            scrape(
                steps_total=100.0,
                step_seconds_total=4.0,
                forward_seconds_total=3.0,
                computed_tokens_total=250.0,
                moe_routing_latency_seconds_count=100.0,
                moe_routing_latency_seconds_sum=1.0,
                moe_routing_latency_seconds_bucket={'{le="0.025"}': 100.0, '{le="+Inf"}': 100.0},
                requests_finished_total={'{reason="stop"}': 3.0, '{reason="length"}': 4.0},
            )
        )
    )
    assert figures.model == "m"
    assert (figures.tokens_per_step, figures.step_seconds) == (2.5, 0.04)
    assert (figures.outside_model, figures.routing_share) == (0.25, 0.25)
    assert figures.finished == 7


def test_layers():
    even = {"layer": 2, "part": "ffn", "num_experts": 4, "top_k": 2, "tokens": [1, 9, 0, 2], "utilization": 0.75}
    even |= {"imbalance": 3.0, "entropy": 0.6, "dead": [2]}
    idle = even | {"layer": 3, "tokens": [0, 0, 0, 0], "utilization": None, "imbalance": None, "entropy": None}
    experts = {"layers": [even, idle, even | {"part": "attention"}]}
    layer, attention = figures_of(Metrics(scrape()), experts).layers
    assert layer == LayerLoad("layer 2", 4, 12, 0.75, 3.0, 0.6, busiest=1, dead=[2])
    assert attention.name == "layer 2 (attention)"


def test_a_metric_without_a_number_is_no_figure():
    assert figures_of(Metrics(scrape(moe_compute_efficiency="NaN"))).compute_efficiency is None


def test_flags_and_profile_steer():
    status = {
        "flags": {"moe_routing_func": ["a:f", "b:g"], "moe_top_k": 4, "threads": 2},
        "routing": {"profile": "thrifty"},
    }
    found = figures_of(Metrics(scrape()), status=status).steered_by
    assert found == ["--moe-routing-func a:f, b:g", "--moe-top-k 4", "the routing profile 'thrifty'"]


def test_quantiles_are_those_of_promql():
    bounds = [(0.1, 50.0), (0.2, 90.0), (float("inf"), 100.0)]
    assert quantile(bounds, 0.25) == pytest.approx(0.05)
    assert quantile(bounds, 0.7) == pytest.approx(0.15)
    assert quantile(bounds, 0.95) == 0.2  # beyond the last bound nothing is known


def test_times_of_a_histogram():
    text = scrape(
        time_to_first_token_seconds_bucket={'{le="1.0"}': 10.0, '{le="2.0"}': 20.0, '{le="+Inf"}': 20.0},
        time_to_first_token_seconds_count=20.0,
        time_to_first_token_seconds_sum=22.0,
    )
    times = figures_of(Metrics(text)).first_token
    assert times == Times(20, 1.1, 1.0, pytest.approx(1.9))
    assert figures_of(Metrics(text)).inter_token is None
    minute = {"count": 20, "mean": 3.0, "p50": 2.0, "p90": 4.0, "p95": 5.0, "p99": 6.0}
    recent = figures_of(Metrics(text), status={"latency": {"time_to_first_token": minute}}).first_token
    assert recent == Times(20, 3.0, 2.0, 5.0, "in the last minute")
    few = {"latency": {"time_to_first_token": minute | {"count": 19}, "inter_token_latency": None}}
    assert figures_of(Metrics(text), status=few).first_token == times


@pytest.mark.parametrize("text", ["", "process_cpu_seconds_total 3.0\n", "vllm:num_requests_running 1.0\n"])
def test_others_metrics_are_refused(text):
    with pytest.raises(ConfigError, match="not a moesaic server"):
        advise(text)


@pytest.mark.parametrize("text", ["<html>no</html>", "moesaic_x{a= 1", 'moesaic_x{a="b"} pear\n'])
def test_what_is_no_metrics_is_refused(text):
    with pytest.raises(ConfigError):
        advise(text)


def test_no_traffic_yet():
    report = advise(scrape(generation_tokens_total=0.0))
    assert not report.has_traffic and not report.outcomes
    assert report.traffic == "no tokens generated yet"
