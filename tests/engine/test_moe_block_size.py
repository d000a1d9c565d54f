"""The size of an expert's blocks goes from flag or environment to the kernel, and changes no token."""

import pytest
import torch

from moesaic import LLM, SamplingParams
from moesaic.core.errors import ConfigError
from moesaic.engine.args import EngineArgs
from moesaic.engine.resolve import moe_block_size, resolve
from moesaic.models.load import load_model


@pytest.mark.parametrize(
    "kwargs, variable, size",
    [
        ({}, None, 0),
        ({"enable_moe_block_align": True}, None, 64),
        ({"moe_block_size": 16}, None, 16),
        ({"moe_block_size": 16, "enable_moe_block_align": True}, "32", 16),
        ({"enable_moe_block_align": True}, "32", 32),
        ({}, " 8 ", 8),
        ({}, "", 0),
    ],
)
def test_where_it_comes_from(monkeypatch, kwargs, variable, size):
    monkeypatch.delenv("MOESAIC_MOE_BLOCK_SIZE", raising=False)
    if variable is not None:
        monkeypatch.setenv("MOESAIC_MOE_BLOCK_SIZE", variable)
    assert moe_block_size(EngineArgs(**kwargs)) == size


@pytest.mark.parametrize("text", ["many", "-8", "12", "1.5", "4096"])
def test_a_bad_variable_is_named(monkeypatch, text):
    monkeypatch.setenv("MOESAIC_MOE_BLOCK_SIZE", text)
    with pytest.raises(ConfigError, match="MOESAIC_MOE_BLOCK_SIZE must be a power of 2 from 1 to 1024, got"):
        resolve(EngineArgs())


def test_it_reaches_the_kernel():
    model = load_model(resolve(EngineArgs(moe_block_size=32, load_format="dummy")).config.model, "cpu", progress=False)
    layer = next(layer.mlp for layer in model.layers if hasattr(layer.mlp, "experts"))
    seen = {}
    layer._fused_moe = lambda hidden, *args, **options: seen.update(options) or hidden
    layer(torch.zeros(3, model.spec.hidden_size))
    assert seen["block_size"] == 32


def test_tokens_do_not_depend_on_it():
    prompts, params = ["One two three", "The capital of"], SamplingParams(temperature=0, max_tokens=12)
    answers = [
        [out.outputs[0].token_ids for out in LLM(**kwargs).generate(prompts, params)]
        for kwargs in ({}, {"moe_block_size": 1}, {"enable_moe_block_align": True})
    ]
    assert answers[0] == answers[1] == answers[2]
