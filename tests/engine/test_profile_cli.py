"""`moesaic profile`: its table against counts of its own file, its files, and what it refuses."""

import json
import math

import pytest
from click.testing import CliRunner

from moesaic.adapt.prompts import EMBEDDED_PROMPTS, read_prompts
from moesaic.adapt.route_report import report, table
from moesaic.core.errors import CheckpointError, ConfigError, RequestError
from moesaic.core.routing_profile import read_profile
from moesaic.entrypoints.cli.main import cli
from moesaic.experts.profile_file import read_routes
from moesaic.experts.recorder import RouteRecorder

SMALL = ("--threads", "1", "--kv-cache-memory", "64MiB")


def profile(*arguments):
    """What the command prints; its error is raised."""
    done = CliRunner().invoke(cli, ["profile", *SMALL, *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the embedded model was profiled with its own prompts, and what that printed."""
    folder = tmp_path_factory.mktemp("profile")
    printed = profile(
        "-o", folder / "routes.safetensors", "--plots", folder / "plots", "--by-tag", "--max-tokens", 8,
        "--stream-tokens", 30, "--prune", "25%", "--pruned", folder / "fewer.toml",
    )  # fmt: skip
    return folder, printed


def test_the_embedded_prompts_work_as_they_are(made):
    folder, printed = made
    routes = read_routes(str(folder / "routes.safetensors"))
    assert routes.tags == ["additions", "json", "prose"] and routes.layers == list(range(5))
    assert sum(routes.tokens_of_tags) == routes.tokens > 42 * 8
    assert (routes.counts[0].sum(1) == 2 * routes.tokens).all() and len(routes.stream) == 30
    assert (routes.counts[1:].sum(0) == routes.counts[0]).all()
    for tag in (None, *routes.tags):
        assert "\n".join(table(routes, tag)) in printed
    pictures = sorted(path.name for path in (folder / "plots").iterdir())
    assert pictures == [
        "experts-0-additions.png", "experts-1-json.png", "experts-2-prose.png", "experts.png", "together.png",
    ]  # fmt: skip
    assert all(str(folder / "plots" / name) in printed for name in pictures)


def test_a_share_is_pruned_and_measured(made):
    folder, printed = made
    written = read_profile(folder / "fewer.toml")
    assert len(written.rules) == 15 and "perplexity" in printed  # three tags in five layers
    assert "weight lost" in printed


def test_the_report_is_by_the_definitions(made):
    routes = read_routes(str(made[0] / "routes.safetensors"))
    told = report(routes)
    assert json.loads(json.dumps(told)) == told and told["tokens"] == routes.tokens
    for part, tag in ((told["layers"], None), (told["tags"]["json"]["layers"], "json")):
        for row, tokens, weights in zip(part, *routes.of(tag), strict=True):
            counts = tokens.tolist()
            shares = [n / sum(counts) for n in counts if n]
            assert row["utilization"] == len(shares) / 16
            assert row["imbalance"] == pytest.approx(max(counts) / (sum(counts) / 16))
            assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(16))
            assert row["dead"] == [e for e, n in enumerate(counts) if not n]
            best = row["hottest"][0]
            assert counts[best["expert"]] == max(counts) and best["share"] == pytest.approx(max(shares))
            assert best["weight"] == pytest.approx(weights[best["expert"]] / weights.sum())


def test_a_file_is_told_of_again(made):
    folder, printed = made
    again = profile("--from", folder / "routes.safetensors", "--by-tag")
    assert again.split("routes.safetensors")[0] == printed.split(str(folder))[0] + str(folder) + "/"
    as_json = json.loads(profile("--from", folder / "routes.safetensors", "--json"))
    assert as_json["layers"] == report(read_routes(str(folder / "routes.safetensors")))["layers"]


def test_what_nobody_went_to():
    nothing = RouteRecorder("tiny", [3], [4], [2]).profile()
    assert table(nothing)[2].split() == ["3", "4", "2", "no", "tokens"]
    assert report(nothing)["layers"][0]["entropy"] is None


LINES = [
    ("", "holds no prompt"),
    ("{", "line 1 is no JSON"),
    ("[]", "line 1 must be an object"),
    ('{"prompt": "x"}\n\n{"promt": "y"}', "line 3: unknown key 'promt': did you mean 'prompt'"),
    ('{"tags": ["a"]}', 'one of "prompt" and "messages"'),
    ('{"prompt": "x", "messages": []}', 'one of "prompt" and "messages"'),
    ('{"prompt": ""}', '"prompt" must be a text'),
    ('{"messages": [{"role": "user"}]}', '"messages" must be'),
    ('{"messages": []}', '"messages" must be'),
    ('{"prompt": "x", "tags": "a"}', "tags must be a list"),
    ('{"prompt": "x", "tags": [""]}', "tags must be"),
]


@pytest.mark.parametrize(("text", "words"), LINES)
def test_lines_that_are_no_prompts(tmp_path, text, words):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=words):
        profile("--dataset", tmp_path / "prompts.jsonl")


def test_files_that_cannot_be(tmp_path, tiny_model):
    assert len(read_prompts(EMBEDDED_PROMPTS)) == 42
    with pytest.raises(ConfigError, match="cannot read"):
        profile("--dataset", tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        profile("-o", tmp_path / "absent" / "file")
    (tmp_path / "file.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors"):
        profile("--from", tmp_path / "file.safetensors")
    with pytest.raises(ConfigError, match="leave --dataset and --output out"):
        profile("--from", tmp_path / "file", "-o", tmp_path / "other")
    with pytest.raises(ConfigError, match="leave --skip-tokenizer-init out"):
        profile("-o", tmp_path / "routes.safetensors", "--model", tiny_model("qwen3_moe"), "--skip-tokenizer-init")
    with pytest.raises(RequestError, match="no experts"):
        profile("-o", tmp_path / "routes.safetensors", "--model", tiny_model("llama"), "--skip-tokenizer-init")
