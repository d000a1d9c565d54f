"""The table of architectures: the command, what it reads, and the page that `make parity` writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from moesaic.core.errors import UnsupportedError
from moesaic.entrypoints.cli.models import command
from moesaic.models import table
from moesaic.models.hf_backend.allowed import ALLOWED
from moesaic.models.hf_backend.kinds import KINDS
from moesaic.models.load import read_spec
from moesaic.models.registry import ModelRegistry
from tests.parity.record import native_facts, record
from tools import make_models

ONE = "Qwen3MoeForCausalLM"
FOREIGN = sorted(ALLOWED.keys() - ModelRegistry.get_supported_archs())
OTHER = next(name for name in FOREIGN if ALLOWED[name].mode == "request")


@pytest.fixture
def measured(tiny_model, tmp_path, monkeypatch):
    """A table of two architectures, from a log as the tests write it."""
    log = tmp_path / "log.jsonl"
    monkeypatch.setenv("MOESAIC_PARITY_LOG", str(log))
    spec = read_spec(tiny_model("qwen3_moe", mlp_only_layers=[1], use_sliding_window=True, sliding_window=5))[1]
    record(ONE, "window", 2e-6, spec)
    record(ONE, "dense layers", 1e-6, spec)
    record(OTHER, "auto", 3e-6, object())
    record(ONE, "by transformers", 4e-6, object())
    entries = make_models.entries(log)
    monkeypatch.setattr(table, "FILE", tmp_path / "table.json")
    table.FILE.write_text(json.dumps([e.as_dict() for e in entries]))
    return entries


def run(*arguments):
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_what_was_measured(measured):
    one, other = measured
    assert (one.architecture, one.by, one.cases, one.difference) == (ONE, "native", 2, 2e-6)
    assert one.attention == ["grouped-query attention"] and one.router == ["softmax"]
    assert {"attention.window", "attention.qk_norm head", "ffn.router.renormalize"} <= set(one.options)
    assert one.lines == len((Path(table.__file__).parent / "archs" / "qwen3_moe.py").read_text().splitlines())
    assert one.refused == ["`hidden_act` other than 'silu'"]
    assert (other.architecture, other.by, other.quantization) == (OTHER, "transformers", [])
    assert "no prefix caching" in other.limits


def test_options_are_what_differs_from_the_defaults(tiny_model):
    assert native_facts(read_spec(tiny_model("llama"))[1])["options"] == []
    facts = native_facts(read_spec(tiny_model("granitemoe"))[1])
    assert {"multipliers.embedding", "multipliers.logits"} <= set(facts["options"])


def test_the_command_lists_every_architecture(measured):
    lines = run().splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    native = ModelRegistry.get_supported_archs()
    assert names == native + FOREIGN
    row = next(line for line in lines if line.startswith(ONE))
    assert "native" in row and "grouped-query attention" in row and "w4a16" in row and "2e-06" in row
    assert next(line for line in lines if line.startswith("Mixtral")).split()[-2:] == ["not", "yet"]


def test_every_architecture_says_what_mixes_tokens():
    assert sorted(KINDS) == FOREIGN
    assert all(entry.attention for entry in table.architectures())


def test_the_command_on_one_architecture(measured):
    (entry,) = json.loads(run("--json", OTHER))
    assert entry["limits"] == table.limits_of(ALLOWED[OTHER]) and entry["quantization"] == []
    with pytest.raises(UnsupportedError, match=f"'Qwen3MoForCausalLM' is not served; nearest: {ONE}"):
        run("Qwen3MoForCausalLM")
    with pytest.raises(UnsupportedError, match="'DogeForCausalLM' is not served: its experts are chosen by"):
        run("DogeForCausalLM")


def test_the_command_knows_model_types(measured):
    assert run("qwen3_moe") == run(ONE) and run("phimoe") == run("PhimoeForCausalLM")


def test_refused_keys_are_told_in_words(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def spec(c):\n"
        "    for key, value in {'first': 'silu', 'second': None}.items():\n"
        "        c.refuse_unless(key, value)\n"
        "    for block in ('a', 'b'):\n"
        "        c.refuse_unless(f'{block}_beta', 1, True)\n"
        "    c.refuse_unless('third', heads(c), None)\n"
    )
    assert make_models.refused(file) == [
        "`a_beta` other than 1 or True",
        "`b_beta` other than 1 or True",
        "`first` other than 'silu'",
        "`second` other than None",
        "`third` other than what other keys say or None",
    ]


def test_the_page(measured):
    page = make_models.page(measured)
    assert "1 native, 1 through transformers" in page
    assert f"| `{ONE}` | native |" in page and "2.0e-06" in page


def test_the_table_that_is_shipped_reads():
    assert {entry.by for entry in table.architectures()} == {"native", "transformers"}


def test_no_torch_is_imported():
    code = "import sys, moesaic.models.table as t; t.architectures(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
