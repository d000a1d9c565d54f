"""The dry run: what fits is offered with its flags, and what does not is said. (tests/unit/test_parameters.py holds the
bytes against what loading takes.)"""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from moesaic.adapt import plan
from moesaic.adapt.machines import Machine, accelerators
from moesaic.adapt.memory import memory_of
from moesaic.adapt.options import step_formats
from moesaic.adapt.predict import offloaded_seconds, parallel_seconds, step_seconds
from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.entrypoints.cli.main import cli
from moesaic.models.floor import decode
from moesaic.models.load import read_spec
from moesaic.weights.quantization import FORMATS, QuantizationPlan
from tests.unit.test_arch_specs import QWEN3

RATES = {"bandwidth": 20e9, "compute": 200e9}  # so that nothing is measured in a test
CPU = Machine(name="a", device="cpu", memory=8 << 30, usable=0.8, bandwidth=20e9, compute={"fp32": 2e11})


def test_a_small_model_fits_as_it_is():
    found = plan("moe-model", **RATES)
    assert found.chosen is found.options[0]
    assert found.flags == ()
    assert found.architecture == "Qwen3MoeForCausalLM"
    assert [option.quantization for option in found.options] == list(FORMATS)


def olmoe(folder):
    """A config of some size, without weights: planning needs none."""
    config = {**QWEN3, "num_hidden_layers": 16, "hidden_size": 2048, "num_experts": 64, "moe_intermediate_size": 1024}
    config |= {"num_experts_per_tok": 8, "vocab_size": 50304, "max_position_embeddings": 4096, "head_dim": 128}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_what_does_not_fit_is_kept_in_fewer_bits(tmp_path):
    found = plan(olmoe(tmp_path), memory="9GiB", **RATES)
    assert not found.options[0].fits
    assert found.chosen.quantization == "w8a16"
    assert found.flags[:2] == ("--quantization", "w8a16")
    assert "--kv-cache-memory" in found.flags
    assert any("offload would make it slower" in remark for remark in found.remarks)


def test_what_fits_in_no_precision_is_said_with_numbers(tmp_path):
    found = plan(olmoe(tmp_path), memory="1GiB", **RATES)
    assert found.chosen is None and found.flags == ()
    assert any("no precision fits into 1 GiB" in remark for remark in found.remarks)


def test_flags_serve_what_was_planned(tmp_path):
    """The cache's memory of the flags holds at least one sequence of the planned length."""
    found = plan(olmoe(tmp_path), memory="9GiB", context=2048, **RATES)
    megabytes = int(found.flags[found.flags.index("--kv-cache-memory") + 1].removesuffix("MiB"))
    assert megabytes << 20 >= 2048 * found.chosen.cache.token


def test_gpus_share_experts_where_that_pays(tmp_path):
    found = plan(olmoe(tmp_path), gpus="8xH200")
    assert found.machine.count == 8 and found.machine.device == "cuda"
    assert any("expert" in remark and "batch 1" in remark for remark in found.remarks)


def test_a_step_takes_longer_with_more_to_read():
    spec = read_spec(plan("moe-model", **RATES).path)[1]
    cache = memory_of(spec, "bfloat16").caches[0]
    formats = step_formats(spec, QuantizationPlan("bfloat16").format_of, cache)
    times = [step_seconds(spec, formats, CPU, decode(batch, 256)) for batch in (1, 8, 32)]
    assert times == sorted(times) and times[0] < times[2]
    slow = replace(CPU, bandwidth=CPU.bandwidth / 4)
    assert step_seconds(spec, formats, slow, decode(1, 256)) > times[0]
    assert offloaded_seconds(spec, formats, CPU, decode(1, 256), 0.5) > times[0]
    h100 = accelerators("2xH100")
    assert parallel_seconds(spec, formats, h100, decode(1, 256)) > step_seconds(spec, formats, h100, decode(1, 256))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gpus": "8xH20O"}, "unknown kind 'H20O': did you mean 'H200'"),
        ({"gpus": "many"}, "unknown kind"),
        ({"gpus": "0xH100"}, "must be a number and a kind"),
        ({"memory": "lots", **RATES}, "--memory must be a size"),
        ({"memory": "1GiB", "gpus": "H100"}, "exclude each other"),
        ({"context": 10**6, **RATES}, "--context must be from 1 to the model's"),
    ],
)
def test_mistakes_are_named(arguments, error):
    with pytest.raises(ConfigError, match=error):
        plan("moe-model", **arguments)


def test_an_architecture_without_a_spec_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NobodyKnowsForCausalLM"]}))
    with pytest.raises(UnsupportedError, match="not supported"):
        plan(str(tmp_path), **RATES)


def test_the_command(tmp_path):
    rates = ["--bandwidth", "20", "--compute", "200"]
    done = CliRunner().invoke(cli, ["plan", *rates])
    assert done.exit_code == 0, done.output
    assert "as it is *" in done.output and "moesaic serve" in done.output
    done = CliRunner().invoke(cli, ["plan", olmoe(tmp_path), "--memory", "9GiB", *rates])
    assert done.exit_code == 1, "there are no weights in the folder"
    assert "w8a16 *" in done.output and "does not load as it is" in done.output
    done = CliRunner().invoke(cli, ["plan", olmoe(tmp_path), "--memory", "1GiB", "--json", *rates])
    assert done.exit_code == 1
    assert json.loads(done.output)["chosen"] is None
