"""What each family's file reads out of a config, beyond what parity can show."""

from dataclasses import replace

import pytest

from moesaic.core.errors import ConfigError, MoesaicError, UnsupportedError
from moesaic.models.archs import glm4_moe
from moesaic.models.load import spec_of
from moesaic.models.spec import DenseSpec, GateSpec, MoESpec, RouterSpec, SharedSpec
from moesaic.weights.rules import RuleBook

COMMON = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
QWEN3 = {
    **COMMON,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "max_window_layers": 2,
}


def spec(**config):
    return spec_of({**COMMON, **config})[1]


def test_defaults_of_missing_keys_are_the_config_class_own():
    mixtral = spec(model_type="mixtral", num_local_experts=4).layers[0]
    assert (mixtral.attention.num_kv_heads, mixtral.attention.rope.theta) == (8, 1e6)
    assert (
        spec(model_type="mixtral", num_local_experts=4, num_key_value_heads=None).layers[0].attention.num_kv_heads == 8
    )
    assert spec_of(QWEN3)[1].layers[0].attention.num_kv_heads == 4
    assert spec(model_type="olmoe", num_experts=8, num_experts_per_tok=2).layers[0].attention.num_kv_heads == 8


def test_mixtral_always_renormalises():
    assert spec(model_type="mixtral", num_local_experts=4).layers[0].ffn.router.renormalize


@pytest.mark.parametrize(
    ("change", "dense"),
    [
        ({}, []),
        ({"mlp_only_layers": [0, 3]}, [0, 3]),
        ({"decoder_sparse_step": 2}, [0, 2]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [0, 1, 2]),
    ],
)
def test_dense_layers_of_qwen3_moe(change, dense):
    layers = spec_of({**QWEN3, **change})[1].layers
    assert [i for i, layer in enumerate(layers) if isinstance(layer.ffn, DenseSpec)] == dense


@pytest.mark.parametrize(
    ("change", "window"),
    [({}, None), ({"use_sliding_window": True}, 4096), ({"use_sliding_window": True, "sliding_window": 9}, 9)],
)
def test_window_of_qwen3_moe_is_of_every_layer_or_none(change, window):
    assert {layer.attention.window for layer in spec_of({**QWEN3, **change})[1].layers} == {window}


def test_published_sizes_count_right():
    """Figures that model cards state: Qwen3-30B-A3B (30.5 B, 3.3 B active), OLMoE-1B-7B (6.9 B, 1.3 B),
    JetMoE-8B (8.5 B, 2.2 B, which leaves the embeddings out)."""
    qwen = spec(
        model_type="qwen3_moe", vocab_size=151936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    )  # fmt: skip
    assert (round(qwen.num_parameters / 1e9, 1), round(qwen.num_active_parameters / 1e9, 1)) == (30.5, 3.4)
    olmoe = spec(
        model_type="olmoe", vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16,
        num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
    )  # fmt: skip
    assert (round(olmoe.num_parameters / 1e9, 1), round(olmoe.num_active_parameters / 1e9, 1)) == (6.9, 1.3)
    jetmoe = spec(
        model_type="jetmoe", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24,
        num_attention_heads=32,
    )  # fmt: skip
    assert (round(jetmoe.num_parameters / 1e9, 1), round(jetmoe.num_active_parameters / 1e9, 1)) == (8.5, 2.3)


def test_heads_of_attention_experts_are_those_of_all_choices():
    jetmoe = {"model_type": "jetmoe", "num_key_value_heads": 2, "num_experts_per_tok": 3}
    assert spec(**{**jetmoe, "num_attention_heads": 6}).layers[0].attention.num_heads == 6
    with pytest.raises(UnsupportedError, match="num_attention_heads = 8 is not supported; only 6 is"):
        spec(**jetmoe)
    with pytest.raises(ConfigError, match="each token attends with 9 experts, the config says, but there are 8"):
        spec(**{**jetmoe, "num_attention_heads": 18, "num_experts_per_tok": 9})


def test_a_dense_model_is_all_active():
    dense = spec(model_type="llama")
    assert dense.num_parameters == dense.num_active_parameters
    assert not any(isinstance(layer.ffn, MoESpec) for layer in dense.layers)


def test_positions_of_gpt_oss_are_not_guessed_at():
    config = {"model_type": "gpt_oss", "num_local_experts": 4}
    with pytest.raises(ConfigError, match="rope_scaling = null: must say how positions are scaled"):
        spec(**config)
    assert spec(**config, rope_scaling={"rope_type": "default"}).layers[0].attention.rope.theta == 150000.0


S, F = "sliding_attention", "full_attention"
GEMMA2 = {"model_type": "gemma2", "num_hidden_layers": 4}
MINISTRAL = {"model_type": "ministral", "num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (GEMMA2, [4096, None, 4096, None]),
        ({**GEMMA2, "sliding_window": 128}, [128, None, 128, None]),
        ({**GEMMA2, "sliding_window": 128, "layer_types": [F, F, S, F]}, [None, None, 128, None]),
        ({**GEMMA2, "sliding_window": None}, [None] * 4),
        ({**MINISTRAL, "sliding_window": 32, "layer_types": [S, F, S]}, [32, None, 32]),
        ({**MINISTRAL, "sliding_window": None}, [None] * 3),
        ({**MINISTRAL, "sliding_window": 16}, [16] * 3),
    ],
    ids=str,
)
def test_windows_that_take_turns(config, windows):
    assert [layer.attention.window for layer in spec(**config).layers] == windows


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
def test_a_window_of_nothing_is_refused(model_type):
    with pytest.raises(ConfigError, match="sliding_window = 0: must be at least 1"):
        spec(model_type=model_type, sliding_window=0)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("attention_chunk_size", 0, "attention_chunk_size = 0: must be at least 1"),
        ("interleave_moe_layer_step", 0, "interleave_moe_layer_step = 0: must be at least 1"),
        ("no_rope_layers", [1, 0], "has 2 entries for 4 layers"),
        ("layer_types", ["sliding_attention"] * 4, "kind of layer in layer_types"),
    ],
)
def test_layers_of_llama4_that_make_no_sense_are_refused(key, value, says):
    config = {"model_type": "llama4_text", "intermediate_size_mlp": 96}
    assert spec(**config).layers[0].attention.window_kind == "chunked"
    with pytest.raises(MoesaicError, match=says):
        spec(**config, **{key: value})


def test_a_base_of_dbrx_that_two_keys_disagree_about_is_refused():
    attn = {"kv_n_heads": 2, "rope_theta": 5e5}
    config = {
        "model_type": "dbrx", "vocab_size": 10, "d_model": 64, "n_heads": 8, "n_layers": 1, "max_seq_len": 64,
        "attn_config": attn, "ffn_config": {"ffn_hidden_size": 8, "moe_num_experts": 4, "moe_top_k": 2},
    }  # fmt: skip
    assert spec_of(config)[1].layers[0].attention.rope.theta == 5e5
    with pytest.raises(UnsupportedError, match="rope_parameters say 10000"):
        spec_of({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    with pytest.raises(UnsupportedError, match="ffn_config.moe_normalize_expert_weights = 2"):
        spec_of({**config, "ffn_config": {**config["ffn_config"], "moe_normalize_expert_weights": 2}})


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def test_longrope_serves_the_length_that_its_first_factors_are_for():
    config = {"model_type": "phimoe", "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 32}}
    assert spec(**config).max_position_embeddings == 32
    for change in ({"original_max_position_embeddings": 32, "short_factor": [1.0]}, {}):
        with pytest.raises(ConfigError, match="has 1 entries for 4 pairs|original_max_position_embeddings is missing"):
            spec(model_type="phimoe", rope_scaling={**LONGROPE, **change})
    with pytest.raises(UnsupportedError, match="num_experts_per_tok = 1"):
        spec(model_type="phimoe", num_experts_per_tok=1)


def test_layers_for_speculation_are_not_needed():
    book = RuleBook(glm4_moe.RULES)
    assert book.ignored("model.layers.46.shared_head.norm.weight") and book.ignored("model.layers.92.eh_proj.weight")
    assert not book.ignored("model.layers.45.shared_head.norm.weight")


MIMO = {"model_type": "mimo_v2_flash", "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
MIMO |= {"moe_intermediate_size": 32, "rope_parameters": None}


def test_sliding_window_size_counts_the_tokens_before():
    layers = spec(**MIMO, sliding_window=9, sliding_window_size=9)
    assert [layer.attention.window for layer in layers.layers] == [None, 10, 10, 10]
    assert spec(**MIMO, sliding_window=9).layers[1].attention.window == 9


def test_heads_that_sliding_layers_cannot_share_are_refused():
    with pytest.raises(ConfigError, match="8 heads of queries cannot share 16 of keys and values"):
        spec(**{**MIMO, "num_key_value_heads": 8})


def test_what_laguna_and_step_must_say_of_their_layers():
    laguna = {"model_type": "laguna", "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    ropes = {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}
    assert spec(**laguna, **ropes).layers[0].attention.output_gate == GateSpec(function="softplus", per="head")
    for change, says in (
        ({}, "must say how each kind of layer rotates"),
        ({**ropes, "num_attention_heads_per_layer": [2, 2]}, "has 2 entries for 4 layers"),
        ({**ropes, "num_attention_heads_per_layer": [2, 2, 2, 3]}, "3 heads of queries cannot share 2"),
        ({**ropes, "gating": "per-layer"}, "gating = .*: must be true, per-head or per-element"),
    ):
        with pytest.raises(ConfigError, match=says):
            spec(**laguna, **change)
    text = {**COMMON, **ropes, "n_routed_experts": 4, "num_experts_per_tok": 2}
    step = {"model_type": "step3p7", "vision_config": {}, "text_config": text}
    assert spec_of(step)[1].layers[3].ffn.num_experts == 4
    for change, says in (
        ({"swiglu_limits": [1.0]}, "text_config.swiglu_limits = .*has 1 entries for 4 layers"),
        ({"per_layer_config": {"0": {"num_attention_heads": 2}}}, "text_config.per_layer_config"),
        ({"gating": False}, "text_config.gating = false is not supported"),
        ({"unheard_of": 1}, "text_config.unheard_of"),
    ):
        with pytest.raises(MoesaicError, match=says):
            spec_of({**step, "text_config": {**text, **change}})


def test_a_language_model_within_another_is_read_whole():
    text = {**COMMON, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = {"model_type": "qwen3_vl_moe", "vision_config": {"depth": 3}, "text_config": text}
    assert (
        not spec_of(config)[1].tied_embeddings and spec_of({**config, "tie_word_embeddings": True})[1].tied_embeddings
    )
    for change, says in (
        ({"text_config": {**text, "norm_topk_prob": False}}, "text_config.norm_topk_prob = false is not supported"),
        ({"text_config": {**text, "unheard_of": 1}}, "text_config.unheard_of = 1"),
        ({"unheard_of": 1}, "unheard_of = 1"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            spec_of({**config, **change})


def test_each_kind_of_layer_must_have_its_positions():
    mellum = {"model_type": "mellum", "layer_types": ["full_attention", *["sliding_attention"] * 3]}
    full = {"rope_type": "default", "rope_theta": 5.0}
    with pytest.raises(ConfigError, match="rope_parameters = .*: says nothing of sliding_attention layers"):
        spec(**mellum, rope_parameters={"full_attention": full})
    layers = spec(**mellum, rope_parameters={"full_attention": full, "sliding_attention": None}).layers
    assert layers[0].attention.rope.theta == 5.0 and layers[1].attention.rope is None
    with pytest.raises(UnsupportedError, match="sliding_attention.partial_rotary_factor = 0.5 is not supported"):
        spec(**mellum, rope_parameters={"full_attention": full, "sliding_attention": {"partial_rotary_factor": 0.5}})


def test_bases_of_layers_are_as_many_as_layers():
    with pytest.raises(ConfigError, match="layer_rope_theta = .*: has 2 entries for 4 layers"):
        spec(model_type="granitemoe_swa", layer_rope_theta=[1e4, 0])


def test_values_of_their_own_size_count():
    wide, narrow = (spec(**MIMO, v_head_dim=size).num_parameters for size in (192, 128))
    # Values of 2 heads in one layer and 4 in three, and as many inputs of 8 heads' outputs in each.
    assert wide - narrow == 64 * 64 * (2 + 3 * 4 + 4 * 8)


GEMMA4 = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "num_key_value_heads": 4, "head_dim": 16}
GEMMA4 |= {"rope_parameters": {"full_attention": {"rope_type": "proportional"}, "sliding_attention": {}}}


def test_heads_of_gemma4s_full_layers():
    def heads(**config):
        layers = spec(**GEMMA4, layer_types=["sliding_attention", "full_attention"] * 2, **config).layers
        return [(la.attention.head_dim, la.attention.num_kv_heads, la.attention.values) for la in layers]

    own = (16, 4, "projected")
    assert heads() == [own, (512, 4, "projected")] * 2
    assert heads(global_head_dim=32, num_global_key_value_heads=2) == [own, (32, 4, "projected")] * 2
    shared = {"attention_k_eq_v": True, "num_global_key_value_heads": 2}
    assert heads(**shared, global_head_dim=32) == [own, (32, 2, "keys")] * 2
    by_layer = {str(layer): {"head_dim": 32, "num_key_value_heads": 2} for layer in (1, 3)}
    assert heads(attention_k_eq_v=True, per_layer_config=by_layer) == [own, (32, 2, "keys")] * 2
    with pytest.raises(ConfigError, match="must give layers of the same kind heads of the same size"):
        heads(per_layer_config={"1": {"head_dim": 32}})
    with pytest.raises(UnsupportedError, match="unknown key in per_layer_config 'hidden_act'"):
        heads(per_layer_config={"1": {"hidden_act": "relu"}})
    with pytest.raises(ConfigError, match="must map the numbers of 4 layers to objects"):
        heads(per_layer_config={"4": {"head_dim": 32}})
    with pytest.raises(ConfigError, match="must hold positive numbers"):
        heads(per_layer_config={"1": {"head_dim": 0}})


def test_what_gemma4_leaves_out_is_refused():
    with pytest.raises(ConfigError, match="hidden_size_per_layer_input = 256: inputs of single layers"):
        spec(**{**GEMMA4, "hidden_size_per_layer_input": 256})
    with pytest.raises(ConfigError, match="rope_parameters = null: must say how each kind of layer rotates"):
        spec(**{key: value for key, value in GEMMA4.items() if key != "rope_parameters"})
    with pytest.raises(UnsupportedError, match="num_kv_shared_layers = 2 is not supported"):
        spec(**GEMMA4, num_kv_shared_layers=2)


def test_norms_of_their_own_need_a_plain_shared_expert():
    moe = {"num_experts": 4, "intermediate_size": 8, "router": RouterSpec(top_k=2), "norms": "own"}
    with pytest.raises(ConfigError, match="stand beside a plain shared one"):
        MoESpec(**moe)
    with pytest.raises(ConfigError, match="stand beside a plain shared one"):
        MoESpec(**moe, shared=SharedSpec(ffn=DenseSpec(intermediate_size=8), average=True))


def test_a_stream_divided_by_a_root_runs_through_plain_layers():
    plain = spec(model_type="beam", rope_parameters={"sliding_attention": {}, "full_attention": None}, n_group=8)
    assert plain.residual == "root_mean"
    assert [layer.attention.temperature is None for layer in plain.layers] == [True, True, True, False]
    with pytest.raises(ConfigError, match="through layers with two parts, each behind a norm"):
        replace(plain, layers=(replace(plain.layers[0], norms="post"),))
    with pytest.raises(ConfigError, match="gates have a bias each or one a head"):
        GateSpec(bias=True, head_bias=True)
