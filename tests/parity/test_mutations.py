"""The parity tests can fail: each detail of a spec, put wrong on purpose, moves the logits by far more than 1e-4."""

from dataclasses import replace

import pytest
import torch

from moesaic.kernels.cpu.latent import PackedHeads
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.layers.rope import inverse_frequencies
from moesaic.models.spec import GateSpec
from tests.parity.driver import Driver, load, relative_difference
from tests.parity.test_families import LLAMA3, YARN, random_streams
from tests.tiny_models import make_tiny

VISIBLE = 1e-3  # ten times the tolerance of parity


def attention(**changes):
    """Change the attention spec of every layer."""

    def mutate(model):
        for layer in model.layers:
            layer.attention.spec = replace(layer.attention.spec, **changes)

    return mutate


def rope(**changes):
    """Change the rotary positions of every layer."""

    def mutate(model):
        for layer in model.layers:
            spec = replace(layer.attention.spec.rope, **changes)
            attention_spec = layer.attention.spec
            layer.attention.inverse_frequencies, layer.attention.rope_factor = inverse_frequencies(
                spec, attention_spec.head_dim
            )

    return mutate


def router(**changes):
    """Change the router of every layer."""

    def mutate(model):
        for layer in model.layers:
            layer.mlp.spec = replace(layer.mlp.spec, router=replace(layer.mlp.spec.router, **changes))

    return mutate


def moe(**changes):
    """Change the experts of every layer."""

    def mutate(model):
        for layer in model.layers:
            layer.mlp.spec = replace(layer.mlp.spec, **changes)

    return mutate


def unlimited(model):
    """No activation is clamped, neither of experts nor of the shared one."""
    for layer in model.layers:
        layer.mlp.spec = replace(layer.mlp.spec, limit=1e9)
        layer.mlp.shared.gate_up.limit = 1e9


def multipliers(**changes):
    """Change the model's multipliers."""

    def mutate(model):
        model.spec = replace(model.spec, multipliers=replace(model.spec.multipliers, **changes))
        for layer in model.layers:
            layer.residual_multiplier = model.spec.multipliers.residual

    return mutate


def norm_eps(model):
    for layer in model.layers:
        layer.attention_norm.eps = 1e-1


def swap_gate_and_up(model):
    for layer in model.layers:
        pages = layer.mlp.experts.pages
        for slot, packed in enumerate(pages.gate_up):
            swapped = PackedMatrix.of(
                packed.unpack().roll(layer.mlp.spec.intermediate_size, 0), packed.format, gated=True
            )
            pages.place(slot, swapped, pages.down[slot])


def shift_page_table(model):
    for layer in model.layers:
        layer.mlp.experts.slot_of.copy_(layer.mlp.experts.slot_of.roll(1))


def latents_not_normed(model):
    for layer in model.layers:
        layer.attention.kv_a_norm.weight.fill_(1.0)


def swap_heads(model):
    for layer in model.layers:
        layer.attention.kv_b.absorbing = PackedHeads(layer.attention.kv_b.keys[::-1])


def halves_for_neighbours(model):
    for layer in model.layers:
        spec = layer.attention.spec
        layer.attention.spec = replace(spec, rope=replace(spec.rope, interleaved=False))


def no_post_norm(model):
    for layer in model.layers:
        layer.ffn_post_norm = None


def no_shortcut(model):
    for layer in model.layers:
        layer.shortcut = None


def no_identity(model):
    for layer in model.layers[::2]:
        layer.shortcut.spec = replace(layer.shortcut.spec, identity_experts=0)


def indexer(**changes):
    """Change every indexer."""

    def mutate(model):
        for layer in model.layers:
            layer.attention.indexer.spec = replace(layer.attention.indexer.spec, **changes)

    return mutate


def index_keys_not_normed(model):
    for layer in model.layers:
        layer.attention.indexer.k_norm.weight.fill_(1.0)
        layer.attention.indexer.k_norm.bias.zero_()


def no_index_weights(model):
    for layer in model.layers[::2]:
        layer.attention.indexer._select = lambda query, weights, *rest, select=layer.attention.indexer._select: select(
            query, torch.zeros_like(weights), *rest
        )


CASES = {
    "mixtral: no renormalisation": ("mixtral", {}, router(renormalize=False)),
    "mixtral: one expert fewer": ("mixtral", {}, router(top_k=1)),
    "mixtral: window forgotten": ("mixtral", {"sliding_window": 6}, attention(window=None)),
    "mixtral: window off by one": ("mixtral", {"sliding_window": 6}, attention(window=7)),
    "mixtral: theta": ("mixtral", {}, rope(theta=1e4)),
    "mixtral: gate and up swapped": ("mixtral", {}, swap_gate_and_up),
    "mixtral: wrong page table": ("mixtral", {}, shift_page_table),
    "qwen3_moe: qk-norm forgotten": ("qwen3_moe", {}, attention(qk_norm=None)),
    "qwen3_moe: renormalised against the config": ("qwen3_moe", {"norm_topk_prob": False}, router(renormalize=True)),
    "qwen3_moe: epsilon": ("qwen3_moe", {}, norm_eps),
    "olmoe: qk-norm forgotten": ("olmoe", {}, attention(qk_norm=None)),
    "olmoe: clip forgotten": ("olmoe", {"clip_qkv": 0.5}, attention(clip_qkv=None)),
    "olmoe: renormalised": ("olmoe", {}, router(renormalize=True)),
    "granitemoe: softmax before top-k": ("granitemoe", {}, router(order="score_then_select")),
    "granitemoe: scale": ("granitemoe", {}, attention(scale=0.25)),
    "granitemoe: embedding multiplier": ("granitemoe", {}, multipliers(embedding=1.0)),
    "granitemoe: residual multiplier": ("granitemoe", {}, multipliers(residual=1.0)),
    "granitemoe: logits multiplier": ("granitemoe", {}, multipliers(logits=1.0)),
    "llama4: chunks taken for windows": ("llama4_text", {}, attention(window_kind="sliding")),
    "llama4: norm of queries and keys forgotten": ("llama4_text", {}, attention(qk_norm=None)),
    "llama4: temperature forgotten": ("llama4_text", {}, attention(temperature=None)),
    "llama4: weights on what experts give": ("llama4_text", {}, moe(weight_on_input=False)),
    "phimoe: the second expert weighed beside the first": ("phimoe", {}, router(scoring="softmax")),
    "phimoe: jitter": ("phimoe", {}, router(jitter=0.01)),
    "afmoe: gates forgotten": ("afmoe", {}, attention(output_gate=None)),
    "afmoe: softplus instead of sigmoid": ("afmoe", {}, attention(output_gate=GateSpec(function="softplus"))),
    "laguna: cap of the router's logits forgotten": ("laguna", {"mlp_layer_types": ["sparse"] * 3}, router(cap=None)),
    "step3p7: limits forgotten": ("step3p7", {"mlp_layer_types": ["sparse"] * 3}, unlimited),
    "dbrx: clip forgotten": ("dbrx", {}, attention(clip_qkv=None)),
    "deepseek_v3: scale without yarn": ("deepseek_v3", {}, attention(scale=32**-0.5)),
    "deepseek_v3: latents not normed": ("deepseek_v3", {}, latents_not_normed),
    "deepseek_v3: heads' keys swapped": ("deepseek_v3", {}, swap_heads),
    "deepseek_v3: halves for neighbours": ("deepseek_v3", {}, halves_for_neighbours),
    "deepseek_v32: one position fewer": ("deepseek_v32", {}, indexer(top_k=5)),
    "deepseek_v32: indexer's neighbours for halves": ("deepseek_v32", {}, indexer(interleaved=True)),
    "deepseek_v32: indexer's keys not normed": ("deepseek_v32", {}, index_keys_not_normed),
    "glm_moe_dsa: every layer chooses the lowest": ("glm_moe_dsa", {}, no_index_weights),
    "axk1: norm of what experts give forgotten": ("axk1", {}, no_post_norm),
    "longcat_flash: shortcut forgotten": ("longcat_flash", {}, no_shortcut),
    "longcat_flash: identity experts forgotten": ("longcat_flash", {}, no_identity),
    "mistral4: temperature forgotten": ("mistral4", {}, attention(temperature=None)),
    "llama: rope llama3 forgotten": ("llama", {"rope_parameters": LLAMA3}, rope(scaling=None)),
    "llama: rope yarn forgotten": ("llama", {"rope_parameters": YARN}, rope(scaling=None)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_spec_shows(case, tmp_path):
    family, options, mutate = CASES[case]
    make_tiny(family, tmp_path, **options)
    model = load(tmp_path)
    streams = random_streams()
    right = Driver(model).run(streams, [9, 1])
    with torch.no_grad():
        mutate(model)
    wrong = Driver(model).run(streams, [9, 1])
    assert max(relative_difference(wrong[i], right[i]) for i in streams) > VISIBLE
