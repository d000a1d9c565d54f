"""`python -m benchmarks.peers` with real processes, tiny, and the checkpoints that it is meant for."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from benchmarks.make_checkpoint import SHAPES, make
from benchmarks.peers import to_w8a8
from benchmarks.peers.__main__ import main
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.protocol import Load
from moesaic import LLM, SamplingParams

KEYS = {"bench", "case", "metric", "value", "unit", "baseline", "ratio", "runs"}
SMALL = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def test_moesaic_beside_transformers(tiny_model) -> None:
    sizes = "--batch-size 1 --batch-size 2 --input-len 5 --output-len 4 --prefill 1x8 --runs 2 --threads 1"
    result = CliRunner().invoke(main, ["--model", tiny_model("qwen3_moe"), "--peer", "transformers", *sizes.split()])
    assert result.exit_code == 0, result.output
    table, _, lines = result.stdout.partition('{"bench"')
    assert "transformers-" in table
    figures = [json.loads(line) for line in ('{"bench"' + lines).splitlines()]
    assert len(figures) == 3 * 3
    for figure in figures:
        if figure["metric"] == "share":
            assert figure["value"] > 0
            continue
        assert set(figure) == KEYS and figure["bench"] == "peers" and figure["runs"] == 2
        assert "vs transformers-" in figure["case"] and "/" not in figure["case"]
        if figure["metric"] == "same_tokens":
            assert figure["value"] == 1.0
        else:
            assert figure["value"] > 0 and figure["baseline"] > 0 and figure["ratio"] > 0


def test_an_engine_that_is_not_there_says_so() -> None:
    load = Load(model="m", dtype="float32", threads=1, max_len=8, max_batch=1)
    with pytest.raises(PeerError, match="No module named 'benchmarks.peers.engines.absent'"):
        Peer("absent", sys.executable, load)


def test_a_process_that_dies_is_quoted() -> None:
    load = Load(model="m", dtype="float32", threads=1, max_len=8, max_batch=1)
    with pytest.raises(PeerError, match="ended with status"):
        Peer("moesaic", "/bin/false", load)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_made_checkpoint_loads_and_runs(shape: str, tmp_path) -> None:
    overrides = {key: value for key, value in SMALL.items() if key in SHAPES[shape][1]}
    llm = LLM(str(make(shape, tmp_path / shape, **overrides)), kv_cache_memory="16MiB")
    (output,) = llm.generate("def f(", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3


def test_w8a8_for_vllm_says_what_the_checkpoint_said(tiny_model, tmp_path) -> None:
    source = Path(tiny_model("qwen3_moe"))
    result = CliRunner().invoke(to_w8a8.main, [str(source), str(tmp_path)])
    assert result.exit_code == 0, result.output
    plain, codes = ({}, {})
    for folder, tensors in ((source, plain), (tmp_path, codes)):
        for file in folder.glob("*.safetensors"):
            tensors.update(load_file(file))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(codes) > set(plain)
    for name, weight in plain.items():
        scale = codes.get(name.removesuffix("weight") + "weight_scale")
        quantised = "proj" in name
        assert (scale is not None) == quantised == (codes[name].dtype is torch.int8), name
        if quantised:
            error = (codes[name].float() * scale - weight.float()).abs()
            assert (error <= scale / 2 + 1e-6).all(), name
