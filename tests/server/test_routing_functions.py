"""Routing functions in a server: from a module in its folder and from an entry point, tags in one batch, failures."""

import json
import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from moesaic import LLM, SamplingParams
from tests.server.real_server import RealServer, until

SOURCE = """
import time


def domain_aware_routing(scores, domain_tags):
    finance_mask = (domain_tags == "finance")
    scores[finance_mask, 4:] *= 0.1
    return scores


def fails_when_asked(scores, domain_tags):
    if (domain_tags == "fail").any():
        raise ValueError("as the tag wished")
    if (domain_tags == "sleep").any():
        time.sleep(0.005)
    return scores
"""
PROMPTS = [[(11 * i + 7 * j) % 128 for j in range(5 + 9 * i)] for i in range(3)]
ROUTINGS = [None, {"tags": ["finance"]}, {"tags": ["law"]}]
TOKENS = 8


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes")
    (folder / "served_routes.py").write_text(SOURCE)
    info = folder / "served_routes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: served-routes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moesaic.routing]\nfailing = served_routes:fails_when_asked\n")
    flags = ("--moe-routing-func", "served_routes:domain_aware_routing", "--moe-routing-func", "failing")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    model = tiny_model("qwen3_moe")
    with RealServer(
        model, "--skip-tokenizer-init", "--served-model-name", "m", *flags, env={"PYTHONPATH": path}, cwd=folder
    ) as running:
        yield running, model


def complete(server, prompt, routing):
    body = {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    body |= {"ignore_eos": True, "logprobs": 0} | ({"routing": routing} if routing else {})
    sent = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=60) as reply:
        [choice] = json.load(reply)["choices"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def test_tags_in_one_batch_give_what_they_give_alone(server):
    running, model = server
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: complete(running, PROMPTS[i], ROUTINGS[i]), range(3)))
    assert together == [complete(running, PROMPTS[i], ROUTINGS[i]) for i in range(3)]
    llm = LLM(model, skip_tokenizer_init=True, threads=1, kv_cache_memory="16MiB")
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    offline = []
    for output in llm.generate(PROMPTS, params, use_tqdm=False):
        [c] = output.outputs
        offline.append((c.token_ids, [row[t].logprob for t, row in zip(c.token_ids, c.logprobs, strict=True)]))
    assert together[0] == offline[0] and together[2] == offline[2]  # untouched, to the last bit
    assert together[1] != offline[1]


def test_a_failing_function_fails_its_request_and_names_itself(server):
    running, _ = server
    before = complete(running, PROMPTS[0], None)
    with pytest.raises(urllib.error.HTTPError) as caught:
        complete(running, PROMPTS[1], {"tags": ["fail"]})
    assert caught.value.code == 500
    message = json.load(caught.value)["error"]["message"]
    assert "'failing' raised ValueError: as the tag wished" in message
    assert complete(running, PROMPTS[0], None) == before
    assert "served_routes.py" in "".join(running.err)  # the traceback is in the log


def metric(server, name):
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1])


def test_a_sleeping_function_shows_in_the_metrics_and_the_log(server):
    running, _ = server
    name = "moesaic_moe_routing_latency_seconds"
    before = {part: metric(running, f"{name}_{part}") for part in ("count", "sum")}
    complete(running, PROMPTS[0], {"tags": ["sleep"]})
    assert metric(running, f"{name}_count") - before["count"] == TOKENS  # one a step
    assert metric(running, f"{name}_sum") - before["sum"] > TOKENS * 2 * 0.005  # two layers
    until(lambda: "the routing function 'failing' is slow" in "".join(running.err), running.log)


def test_functions_that_are_not_there_end_the_start_with_one_line(tiny_model):
    server = RealServer(tiny_model("qwen3_moe"), "--moe-routing-func", "no_such_routes:steer", wait=False)
    assert server.process.wait(timeout=60) != 0
    server.stop()
    log = "".join(server.err)
    assert "--moe-routing-func no_such_routes:steer: there is no module 'no_such_routes'" in log
    assert "Traceback" not in log
