"""Routing functions in an engine: routes as asked, neighbours untouched, failures kept to the batch, prefixes apart."""

import logging
import time

import pytest
import torch

from moesaic import LLM, RoutingDecision, RoutingInput, SamplingParams
from moesaic.core.errors import ConfigError
from moesaic.kernels.cpu.replay import Program

PROMPTS = [[(11 * i + 7 * j) % 128 for j in range(5 + 9 * i)] for i in range(4)]
FINANCE, LAW, BOTH, NONE = {"tags": ["finance"]}, {"tags": ["law"]}, {"tags": ["law", "finance"]}, None


def domain_aware_routing(scores, domain_tags):
    finance_mask = (domain_tags == "finance")  # fmt: skip
    scores[finance_mask, 4:] *= 0.1
    return scores


def engine(path, *functions, **kwargs):
    llm = LLM(path, skip_tokenizer_init=True, threads=1, moe_backend="cpu", kv_cache_memory="16MiB", **kwargs)
    for function in functions:
        llm.register_moe_routing_func(function)
    return llm


def params(routing=None, tokens=6, **more):
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, routing=routing, **more)


def run(llm, prompts, routings, **more):
    outputs = llm.generate(prompts, [params(r, **more) for r in routings], use_tqdm=False)
    return [said(output) for output in outputs]


def said(output):
    """Tokens and log-probabilities of an output, to compare bit by bit."""
    [completion] = output.outputs
    return completion.token_ids, [
        row[t].logprob for t, row in zip(completion.token_ids, completion.logprobs, strict=True)
    ]


def taps(llm):
    return llm.llm_engine.engine.executor.model.expert_stats


class Watched:
    """A router with its stage watched: logits and routes of every row, by layer."""

    def __init__(self, llm):
        self.seen = []
        for index, layer in enumerate(llm.llm_engine.engine.executor.model.layers):
            router = layer.mlp.router
            choose = router.choose

            def watched(logits, spec, counts=None, index=index, choose=choose):
                routing = choose(logits, spec, counts)
                self.seen.append((index, logits.clone(), routing.ids.clone(), routing.weights.clone()))
                return routing

            router.choose = watched


def test_two_tags_in_one_batch_and_a_neighbour_without(tiny_model):
    """The snippet of the documentation. tiny: 8 experts, softmax, renormalised top 3."""
    path = tiny_model("qwen3_moe")
    alone = run(engine(path), PROMPTS[:1], [NONE])[0]
    llm = engine(path, domain_aware_routing, enable_prefix_caching=False)
    watched = Watched(llm)
    together = run(llm, PROMPTS[:4], [NONE, FINANCE, LAW, BOTH])
    assert together[0] == alone  # bit by bit
    plain = engine(path, enable_prefix_caching=False)
    assert together[2] == run(plain, PROMPTS[2:3], [LAW])[0]
    assert together[1] != run(plain, PROMPTS[1:2], [NONE])[0]
    assert together[1] == run(llm, PROMPTS[1:2], [FINANCE])[0]
    assert together[3] == run(llm, PROMPTS[3:4], [BOTH])[0]
    _, logits, ids, weights = watched.seen[0]
    scores = logits.softmax(-1)
    first = len(PROMPTS[0])
    finance = torch.zeros(len(ids), dtype=torch.bool)
    finance[first : first + len(PROMPTS[1])] = finance[-len(PROMPTS[3]) :] = True
    scores[finance, 4:] *= 0.1
    best = scores.topk(ids.shape[1])
    assert torch.equal(ids.long(), best.indices)
    torch.testing.assert_close(weights, best.values / best.values.sum(1, keepdim=True))
    assert (ids[finance] >= 4).float().mean() < (ids[~finance] >= 4).float().mean()


FAMILIES = [
    "qwen3_moe",
    "mixtral",
    "granitemoe",
    "deepseek_v3",
    "llama4_text",
    "phimoe",
    "gpt_oss",
    "jetmoe",
    "lfm2_moe",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_router_keeps_neighbours(tiny_model, family):
    path = tiny_model(family)

    def halve(scores, tags):
        scores[(tags == "finance"), ::2] *= 0.02
        return scores

    alone = run(engine(path), PROMPTS[:2], [NONE, NONE])
    llm = engine(path, halve)
    together = run(llm, PROMPTS[:3], [NONE, FINANCE, LAW])
    assert together[0] == alone[0] and together[1] != alone[1]
    assert run(llm, PROMPTS[1:2], [FINANCE])[0] == together[1]


def without_the_rest(scores, domain_tags):
    """Leaves finance two experts, fewer than models take."""
    scores[domain_tags == "finance", 2:] = 0
    return scores


@pytest.mark.parametrize("function", [domain_aware_routing, without_the_rest])
@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe", "deepseek_v3", "phimoe", "jetmoe"])
def test_replayed_steps_are_decided_alike(tiny_model, family, function, monkeypatch):
    replays = []
    run_between = Program.run_between
    monkeypatch.setattr(Program, "run_between", lambda *given: replays.append(given[1]) or run_between(*given))
    path, routings = tiny_model(family), [NONE, FINANCE, {**FINANCE, "top_k": 1}, {**BOTH, "ban": [0, 3]}]
    expected = run(engine(path, function, enforce_eager=True), PROMPTS, routings, tokens=8)
    assert not replays
    eager = engine(path, function, enforce_eager=True)
    llm = engine(path, function)
    for one in (eager, llm):
        taps(one).reset()
    assert run(llm, PROMPTS, routings, tokens=8) == run(eager, PROMPTS, routings, tokens=8) == expected
    assert replays == [4] * 7
    assert torch.equal(taps(llm).counts, taps(eager).counts)
    for (_, ids, weights), (_, other_ids, others) in zip(taps(llm).of_step(4), taps(eager).of_step(4), strict=True):
        assert torch.equal(ids, other_ids[:, : ids.shape[1]]) and torch.equal(weights, others[:, : ids.shape[1]])
    llm.unregister_moe_routing_func(function.__name__)
    replays.clear()
    assert run(llm, PROMPTS, [NONE] * 4) == run(engine(path), PROMPTS, [NONE] * 4)
    assert not replays


def test_chunks_and_preemption_change_nothing(tiny_model):
    path = tiny_model("qwen3_moe")
    expected = run(engine(path, domain_aware_routing), PROMPTS, [FINANCE, NONE, BOTH, LAW])
    chunked = engine(path, domain_aware_routing, max_num_batched_tokens=7)
    assert run(chunked, PROMPTS, [FINANCE, NONE, BOTH, LAW]) == expected
    [scheduler] = [chunked.llm_engine.engine.scheduler]
    for i, routing in enumerate([FINANCE, NONE, BOTH, LAW]):
        chunked.llm_engine.add_request(str(i), PROMPTS[i], params(routing))
    outputs, steps = {}, 0
    while chunked.llm_engine.has_unfinished_requests():
        outputs |= {o.request_id: o for o in chunked.llm_engine.step() if o.finished}
        steps += 1
        if steps in (9, 12) and scheduler.running:
            scheduler.preempt(scheduler.running[-1])
    assert scheduler.stats.preemptions_total == 2
    assert [said(outputs[str(i)]) for i in range(4)] == expected


def test_prefixes_of_other_tags_and_functions_are_not_found(tiny_model):
    path = tiny_model("qwen3_moe")
    long = [PROMPTS[3] * 3] * 3
    expected = run(engine(path, domain_aware_routing, enable_prefix_caching=False), long, [NONE, FINANCE, LAW])
    llm = engine(path, enable_prefix_caching=True)
    plain = run(llm, long[:1], [NONE])
    llm.register_moe_routing_func(domain_aware_routing)
    for _ in range(2):  # the second time each finds its own
        for i, routing in enumerate((NONE, FINANCE, LAW)):
            assert run(llm, [long[i]], [routing])[0] == expected[i]
    assert llm.llm_engine.engine.stats.prefix_hits_total > 0
    llm.unregister_moe_routing_func("domain_aware_routing")
    assert run(llm, long[:1], [FINANCE]) == plain


def test_a_full_function_sets_k_by_token(tiny_model):
    seen = {}

    def by_request(x: RoutingInput) -> RoutingDecision:
        if len(x.k) > 1 and x.layer not in seen:
            seen[x.layer] = [x.request_ids[t][0] for t in range(len(x.k))], x.positions.tolist()
        return RoutingDecision(k=torch.where(x.tags == "wide", 5, torch.where(x.tags == "narrow", 1, x.k)))

    path = tiny_model("qwen3_moe")
    alone = run(engine(path), PROMPTS[:1], [NONE])[0]
    llm = engine(path, by_request)
    watched = Watched(llm)
    seen.clear()
    routings = [NONE, {"tags": ["wide"]}, {"tags": ["narrow"]}]
    together = run(llm, PROMPTS[:3], routings)
    assert together[0] == alone
    _, _, ids, weights = watched.seen[0]
    used = (ids >= 0).sum(1).tolist()
    assert ids.shape[1] == 5
    lens = [len(p) for p in PROMPTS[:3]]
    assert used == [3] * lens[0] + [5] * lens[1] + [1] * lens[2]
    assert not weights[ids < 0].any() and torch.allclose(weights.sum(1), torch.ones(len(weights)))
    for i in (1, 2):
        assert run(llm, [PROMPTS[i]], [routings[i]])[0] == together[i]
        assert run(engine(path), [PROMPTS[i]], [{"top_k": 5 if i == 1 else 1}])[0][0] == together[i][0]
    requests, positions = next(iter(seen.values()))
    assert len(set(requests)) == 3 and positions[: lens[0]] == list(range(lens[0]))


def test_options_of_requests_come_before_functions(tiny_model):
    """Banned experts score 0 and stay banned; temperature and bias show in the logits."""
    seen = []

    def look(x: RoutingInput) -> RoutingDecision:
        seen.append(x)
        return RoutingDecision(x.scores**2)

    llm = engine(tiny_model("qwen3_moe"), look)
    watched = Watched(llm)
    seen.clear()
    options = {"ban": [1, 6], "temperature": 2.0, "bias": {3: 1.5}, "top_k": 4}
    run(llm, PROMPTS[:1], [options])
    x, (_, logits, ids, _) = seen[0], watched.seen[0]
    expected = logits / 2
    expected[:, 3] += 1.5
    expected[:, [1, 6]] = float("-inf")
    assert torch.equal(x.logits, expected) and x.k.tolist() == [4] * len(PROMPTS[0])
    torch.testing.assert_close(x.scores, expected.softmax(-1))
    assert torch.equal(ids.long(), (expected.softmax(-1) ** 2).topk(4).indices)


def test_counts_are_of_what_was_decided(tiny_model):
    llm = engine(tiny_model("qwen3_moe"), domain_aware_routing)
    watched = Watched(llm)
    stats = taps(llm)
    stats.reset()
    run(llm, PROMPTS, [FINANCE, NONE, FINANCE, BOTH])
    counted = torch.zeros_like(stats.counts)
    for index, _, ids, _ in watched.seen:
        counted[index] += torch.bincount(ids[ids >= 0], minlength=counted.shape[1])
    assert torch.equal(stats.counts, counted)


@pytest.mark.parametrize("rows", [None, 3], ids=["in the prompt", "in a replayed step"])
@pytest.mark.parametrize("how", ["raises", "nan", "negative", "nothing left", "shape"])
def test_a_failure_takes_its_batch_and_nothing_else(tiny_model, how, rows, log):
    broken = [False]

    def moody(scores, tags):
        breaks = broken[0] and rows in (None, len(scores))
        if breaks and how == "raises":
            raise ValueError("not today")
        if breaks:
            made = {"nan": scores / 0 * 0, "negative": -scores, "nothing left": scores * 0, "shape": scores[:, :2]}
            return made[how]
        return scores

    path = tiny_model("qwen3_moe")
    llm = engine(path, moody)
    expected = run(engine(path), PROMPTS, [NONE] * 4)
    broken[0] = True
    with log.at_level(logging.ERROR, "moesaic"):
        outputs = llm.generate(PROMPTS[:3], params(), use_tqdm=False)
    assert all(o.outputs[0].finish_reason == "error" and "'moody'" in o.error for o in outputs)
    words = {"raises": "not today", "nan": "not finite", "negative": "negative score", "nothing left": "no expert"}
    assert "moody" in log.text and words.get(how, "a tensor [") in log.text
    assert all(bool(o.outputs[0].token_ids) == (rows is not None) for o in outputs)
    llm.llm_engine.engine.check_integrity()
    broken[0] = False
    assert run(llm, PROMPTS, [NONE] * 4) == expected


def test_a_sleeping_function_is_named_and_its_time_shows(tiny_model, log):
    def sleeper(scores, tags):
        time.sleep(0.004)
        return scores

    llm = engine(tiny_model("qwen3_moe"), sleeper)
    before = llm.llm_engine.engine.stats.routing_seconds_total
    with log.at_level(logging.WARNING, "moesaic"):
        run(llm, PROMPTS[:1], [NONE], tokens=4)
    layers = len(llm.llm_engine.engine.info.moe.layers)
    stats = llm.llm_engine.engine.stats
    assert stats.forward_seconds_total > stats.routing_seconds_total - before > 4 * layers * 0.004
    warnings = {record for record in log.records if "'sleeper' is slow" in record.getMessage()}
    assert len(warnings) == 1  # once a minute


def test_time_in_replayed_steps_is_measured_too(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    assert llm.llm_engine.engine.executor.runner.recorded.program is not None
    llm.llm_engine.add_request("a", PROMPTS[0], params())
    spent = []
    while llm.llm_engine.has_unfinished_requests():
        before = llm.llm_engine.engine.stats.routing_seconds_total
        llm.llm_engine.step()
        spent.append(llm.llm_engine.engine.stats.routing_seconds_total - before)
    assert len(spent) == 6 and all(0 < seconds < 1 for seconds in spent)


def test_registration_waits_for_requests_under_way(tiny_model):
    llm = engine(tiny_model("qwen3_moe"))
    llm.llm_engine.add_request("a", PROMPTS[0], params())
    with pytest.raises(ConfigError, match="under way"):
        llm.register_moe_routing_func(domain_aware_routing)
    llm.llm_engine.abort_request("a")
    assert llm.register_moe_routing_func(domain_aware_routing, name="mine", version="1") == "mine"
    with pytest.raises(ConfigError, match="registered already"):
        llm.register_moe_routing_func(domain_aware_routing, name="mine")


def test_models_whose_routes_are_not_ours_refuse(tiny_model):
    with pytest.raises(ConfigError, match="no experts"):
        engine(tiny_model("llama"), domain_aware_routing)
    foreign = LLM(tiny_model("afmoe"), skip_tokenizer_init=True, threads=1, model_impl="transformers")
    with pytest.raises(ConfigError, match="transformers"):
        foreign.register_moe_routing_func(domain_aware_routing)


def test_functions_by_flag(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "flagged_routes.py").write_text(
        "def steer(scores, domain_tags):\n    scores[domain_tags == 'finance', 4:] *= 0.1\n    return scores\n"
    )
    monkeypatch.chdir(tmp_path)
    path = tiny_model("qwen3_moe")
    llm = engine(path, moe_routing_func=["flagged_routes:steer"])
    assert llm.llm_engine.engine.info.routing_functions == ["flagged_routes:steer"]
    assert run(llm, PROMPTS[:2], [FINANCE, NONE]) == run(
        engine(path, domain_aware_routing), PROMPTS[:2], [FINANCE, NONE]
    )
    with pytest.raises(ConfigError, match="no module 'flogged_routes'"):
        engine(path, moe_routing_func=["flogged_routes:steer"])
