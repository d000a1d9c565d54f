"""The command line without a model: its flags, its help, its errors, and what it does not import."""

import subprocess
import sys
from dataclasses import fields

import pytest
from click.testing import CliRunner

from moesaic import __version__
from moesaic.core.errors import ConfigError
from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.cli.main import VERBS, cli, main
from moesaic.entrypoints.cli.options import SAMPLING
from moesaic.entrypoints.server.settings import ServerArgs

FLAGS = """
--model m --max-model-len 99 --no-enable-prefix-caching --skip-tokenizer-init --kv-cache-memory 4GiB
--gpu-memory-utilization 0.5 --dtype float32 --served-model-name a --served-model-name b
--host ::1 --port 0 --api-key k1 --api-key k2 --disable-log-requests --log-level error
"""
HEAVY = {"torch", "transformers", "numpy", "fastapi", "pydantic", "uvicorn", "zmq", "rich"}


@pytest.fixture
def served(monkeypatch):
    """`moesaic serve` up to where it would serve; returns what it would serve."""
    import moesaic.entrypoints.server.run as run

    def serve(*args: str) -> tuple[EngineArgs, ServerArgs]:
        got = []
        monkeypatch.setattr(run, "run_server", lambda *given: got.append(given) or 0)
        result = CliRunner().invoke(cli, ["serve", *args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return got[0]

    return serve


def run_main(capsys, *args: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_defaults_are_those_of_the_dataclasses(served):
    assert served() == (EngineArgs(), ServerArgs())


def test_every_field_has_a_flag():
    output = CliRunner().invoke(cli, ["serve", "--help"]).output
    for f in (*fields(EngineArgs), *fields(ServerArgs)):
        assert f"--{f.name.replace('_', '-')}" in output


def test_flags_of_every_type(served):
    engine, server = served(*FLAGS.split())
    assert engine == EngineArgs(
        model="m",
        max_model_len=99,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        kv_cache_memory="4GiB",
        gpu_memory_utilization=0.5,
        dtype="float32",
        served_model_name=["a", "b"],
    )
    assert server == ServerArgs(host="::1", port=0, api_key=["k1", "k2"], disable_log_requests=True, log_level="error")


def test_underscores_as_vllm_takes_them(served):
    assert served("--max_model_len", "99")[0].max_model_len == 99


def test_model_by_place(served):
    assert served("some/model")[0].model == "some/model"
    assert served("some/model", "--model", "some/model")[0].model == "some/model"
    with pytest.raises(ConfigError, match="two models"):
        served("some/model", "--model", "other")


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["serv"], 2, ["'serv'", "'serve'"]),
        (["serve", "--max-model-length", "5"], 2, ["--max-model-length", "--max-model-len"]),
        (["serve", "--port", "many"], 2, ["--port", "many"]),
        (["serve", "--dtype", "int3"], 2, ["--dtype", "bfloat16"]),
        (["serve", "a", "b"], 2, ["b"]),
        (["generate"], 2, ["PROMPT"]),
        (["generate", "x", "--temperature", "-1"], 1, ["error: temperature", "-1"]),
        (["chat", "--url", "http://127.0.0.1:1"], 1, ["error: cannot talk to http://127.0.0.1:1"]),
        (["chat", "--url", "nonsense"], 1, ["error: cannot talk to nonsense"]),
        (["chat", "--url", "http://x", "--dtype", "float32"], 1, ["error: --dtype is the server's"]),
    ],
)
def test_errors_are_one_line_and_name_the_nearest(capsys, monkeypatch, args, status, words):
    monkeypatch.delenv("MOESAIC_DEBUG", raising=False)
    code, _, err = run_main(capsys, *args)
    assert code == status, err
    for word in words:
        assert word in err
    assert "Traceback" not in err
    if status == 1:
        assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(monkeypatch):
    monkeypatch.setenv("MOESAIC_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["serve", "a", "--model", "b"])


def test_version(capsys):
    assert run_main(capsys, "--version")[:2] == (0, f"moesaic {__version__}\n")


def test_help_lists_every_verb(capsys):
    code, out, _ = run_main(capsys, "--help")
    assert code == 0
    for verb, (_, text) in VERBS.items():
        assert verb in out and text.split(",")[0].split(".")[0] in out


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\n"
        "from moesaic.entrypoints.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sampling_flags_are_sampling_parameters():
    from moesaic.core.sampling_params import SamplingParams

    assert set(SAMPLING) <= {f.name for f in fields(SamplingParams)}
