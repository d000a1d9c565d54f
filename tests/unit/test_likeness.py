"""Which known architecture a checkpoint resembles, when its names are changed: the one that it was, of every family."""

from dataclasses import replace

import pytest

from moesaic.adapt import inspect
from moesaic.adapt.likeness import nearest_architectures
from moesaic.adapt.survey import survey
from moesaic.models.registry import ModelRegistry
from moesaic.weights.tensors import TensorInfo
from tests.families import CONFIGS
from tests.unit.test_inspect import SAMPLE, change_config, folder  # noqa: F401

RENAMED = {
    "self_attn": "attn", "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "gate_proj": "w1",
    "up_proj": "w3", "down_proj": "w2", "block_sparse_moe": "moe", "feed_forward": "moe", "mlp": "moe",
    "input_layernorm": "norm_a", "post_attention_layernorm": "norm_b", "embed_tokens": "tok_embeddings",
    "lm_head": "output", "layers": "blocks", "model.": "net.", "layernorm": "ln",
}  # fmt: skip


def renamed(tensors):
    names = {}
    for name, info in tensors.items():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        names[name] = info
    return names


def same(architecture, other):
    specs = [ModelRegistry.resolve({"architectures": [name]}).spec for name in (architecture, other)]
    return specs[0] is specs[1]


@pytest.mark.parametrize(
    "family", [f if f in SAMPLE else pytest.param(f, marks=pytest.mark.parity_full) for f in CONFIGS]
)
def test_what_it_was_is_nearest(tiny_model, family):
    found = survey(tiny_model(family))
    architecture = found.config["architectures"][0]
    strange = {**found.config, "architectures": ["MoEModel"], "model_type": "odd"}
    for names in (found.tensors, renamed(found.tensors)):
        ranked = nearest_architectures(replace(found, config=strange, tensors=names, weights=names))
        # some have a twin that is as near: under strange names, or where few layers are of a shape of their own
        close = [like.architecture for like in ranked[: 1 if family in SAMPLE else 2]]
        assert any(same(name, architecture) for name in close), [(like.architecture, like.score) for like in ranked]


def test_what_differs_is_told(tiny_model):
    found = survey(tiny_model("olmoe"))
    names = {
        n.replace("self_attn.k_norm", "self_attn.key_ln"): i for n, i in found.tensors.items() if ".q_norm" not in n
    }
    names["model.layers.0.extra.weight"] = TensorInfo("F32", (7, 3), "a")
    config = {k: v for k, v in found.config.items() if k != "hidden_size"} | {
        "architectures": ["Odd"], "d_model": found.config["hidden_size"], "odd_key": 1, "hidden_act": "tanh",
    }  # fmt: skip
    best = nearest_architectures(replace(found, config=config, tensors=names, weights=names))
    like = next(like for like in best if like.architecture == "OlmoeForCausalLM")
    assert like.renamed["hidden_size"] == "d_model" and like.unknown_keys == ("odd_key",)
    assert like.refused == ("hidden_act = 'tanh'",)
    assert "attention: norm of queries" in like.unfilled or "attention: norm of keys" in like.unfilled
    assert "model.layers.{l}.extra.weight" in like.unexplained
    by_pattern = {match.pattern: match for match in like.matches}
    assert by_pattern["model.layers.{l}.mlp.gate.weight"].parameters == ("layers.#.mlp.router.weight",)
    assert by_pattern["model.layers.{l}.mlp.gate.weight"].credit == 1.0
    assert by_pattern["model.layers.{l}.self_attn.key_ln.weight"].credit < 1
    assert any("odd_key" in what for what in like.differs)


def test_of_tensors_alone(tiny_model):
    found = survey(tiny_model("deepseek_v3"))
    best = nearest_architectures(replace(found, config=None))
    assert best[0].tensors >= 0.8 and not best[0].unknown_keys
    assert nearest_architectures(replace(found, config=None, tensors={}, weights={})) == []


def test_the_report_of_an_unknown_one(folder):  # noqa: F811
    change_config(folder, architectures=["MoEModel"], model_type="odd", num_experts=None, experts_num=16)
    report = inspect(folder)
    assert report.identity.served == "" and "MoEModel" in report.identity.why
    assert report.nearest[0].architecture == "Qwen3MoeForCausalLM" and report.nearest[0].score > 0.95
    router = next(use for use in report.uses if use.pattern == "model.layers.{l}.mlp.gate.weight")
    assert (router.state, router.becomes) == ("guessed", "router")
    assert report.ok and report.memory is None and report.experts == 16 and report.top_k == 2
