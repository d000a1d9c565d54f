"""`moesaic generate` and `moesaic chat` with the embedded model, in this process and on a started server."""

import json

import pytest
from click.testing import CliRunner, Result

from moesaic.entrypoints.cli.main import cli

SMALL = ("--threads", "1", "--kv-cache-memory", "64MiB")


def run(*args: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(cli, args, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_LOG_LEVEL", "WARNING")  # and what the command sets is undone


def test_generate():
    asked = ("generate", "-", "--max-tokens", "8", "--temperature", "0", *SMALL)
    plain = run(*asked, stdin="Explain MoE architecture").stdout
    record = json.loads(run(*asked, "--json", stdin="Explain MoE architecture").stdout)
    assert record["prompt"] == "Explain MoE architecture" and record["prompt_tokens"] > 0
    [output] = record["outputs"]
    assert output["text"] + "\n" == plain and len(output["token_ids"]) == 8 and output["finish_reason"] == "length"


def test_generate_several():
    lines = run("generate", "The", "--n", "2", "--max-tokens", "4", "--stop", "\n", *SMALL).stdout.splitlines()
    assert lines[0].startswith("[0] ") and lines[-1].startswith("[1] ")


def test_generate_with_a_seed_is_reproducible():
    asked = ("generate", "The", "--seed", "5", "--temperature", "1.5", "--max-tokens", "8", *SMALL)
    assert run(*asked).stdout == run(*asked).stdout


TALK = "What is 2 + 3?\n/clear\n\n/help\n/nonsense\nWhat is 2 + 3?\n/quit\nnever said\n"


def test_chat_here_and_there_say_the_same(server):
    flags = ("--temperature", "0", "--max-tokens", "12")
    here = run("chat", *flags, *SMALL, stdin=TALK).stdout
    there = run("chat", "--url", server.url, *flags, stdin=TALK).stdout
    assert here == there
    lines = here.splitlines()
    assert lines[0] == lines[-1] and sum("/clear" in line for line in lines) == 2  # help, and the unknown command


def test_chat_shows_the_servers_refusal(server):
    result = CliRunner().invoke(cli, ["chat", "nobody", "--url", server.url], input="hello\n")
    assert "'nobody' is not served here" in str(result.exception)
