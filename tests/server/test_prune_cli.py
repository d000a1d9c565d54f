"""`moesaic prune` on the embedded model: what it writes is served, and what it says was measured."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from moesaic.core.routing_profile import read_profile
from moesaic.entrypoints.cli.main import cli
from moesaic.experts.profile_file import RouteProfile, write_routes

SMALL = ("--threads", "1", "--kv-cache-memory", "64MiB")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where routes of a model of five layers of 16 experts lie: expert e of layer i carries (3 e + i) mod 16 of "x",
    and of "y" what is left to 16."""
    x = np.array([[(3 * e + i) % 16 for e in range(16)] for i in range(5)], np.float64)
    weights = np.stack([np.full((5, 16), 16.0) + x / 100, x, 16 - x])
    routes = RouteProfile(
        model="moe-model",
        layers=list(range(5)),
        num_experts=[16] * 5,
        top_k=[2] * 5,
        tags=["x", "y"],
        tokens=640,
        tokens_of_tags=[300, 340],
        tags_left_out=False,
        counts=np.ones((3, 5, 16), np.int64),
        weights=weights,
        pairs=np.zeros((5, 120), np.int32),
    )
    write_routes(routes, str(tmp_path / "routes.safetensors"))
    prompts = [{"messages": [{"role": "user", "content": "What is 4 + 5?"}], "tags": ["x"]}, {"prompt": "47 + 38 ="}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "WARNING")
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, ["prune", "routes.safetensors", *args])


def test_the_profile(folder):
    result = run("--share", "12.5%")
    assert result.exit_code == 0, result.output
    profile = read_profile(folder / "pruned.toml")
    assert profile.name == "pruned" and profile.rules_for([])[0].ban == [0, 11]  # 3 * 11 = 33 = 1 modulo 16
    assert profile.rules_for([])[1].layers == [1] and profile.rules_for([])[1].ban == [0, 5]  # 16 and 1: (3 * 5 + 1), 1
    assert "12.5% of the experts of each layer, by 640 recorded tokens of moe-model" in profile.description
    assert re.search(r"0  every request +12\.\d%  0, 11\n", result.output) and "--moe-routing-profile" in result.output


def test_by_tag_and_measured(folder):
    result = run("--share", "0.5", "--by-tag", "-o", "half.toml", "--dataset", "prompts.jsonl", *SMALL)
    assert result.exit_code == 0, result.output
    profile = read_profile(folder / "half.toml")
    assert profile.name == "half" and profile.tags == ["x", "y"] and profile.rules_for([]) == []
    bans = [set(profile.rules_for([tag])[0].ban) for tag in ("x", "y")]
    assert [len(ban) for ban in bans] == [8, 8] and len(bans[0] & bans[1]) <= 1
    told = re.search(r"goes from ([\d.]+) to ([\d.]+), and ([\d.]+)% of their (\d+) tokens stay", result.output)
    assert float(told[1]) < float(told[2]) and 0 < float(told[3]) < 100 and int(told[4]) > 3
    assert told[0] in profile.description


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--share", "0"], "such as 25%"),
        (["--share", "1%"], "nothing is pruned"),
        (["-o", "a.json"], "must end in .toml"),
        (["-o", ".toml"], "must end in .toml"),
        (["--dataset", "routes.safetensors"], "is no JSON"),
        (["--dataset", "prompts.jsonl", "--skip-tokenizer-init", *SMALL], "prompts need a tokenizer"),
    ],
)
def test_faults(folder, args, message):
    result = run(*args)
    assert result.exit_code and message in str(result.exception) + result.output
    assert not (folder / "pruned.toml").exists()


def test_routes_that_are_none(folder):
    (folder / "routes.safetensors").write_bytes(b"no routes")
    result = run()
    assert result.exit_code and "routes.safetensors" in str(result.exception)
