"""Layers that keep a state: each detail, put wrong on purpose, shows in the logits; and quantised ones compute the same
model."""

from dataclasses import replace

import pytest
import torch

from moesaic.core.config import ModelConfig
from moesaic.models.load import load_model
from tests.families import recurrent
from tests.parity.driver import BLOCK_SIZE, Driver, load, relative_difference
from tests.parity.test_families import random_streams
from tests.parity.test_mutations import VISIBLE
from tests.tiny_models import make_tiny


def mixers(model, part):
    """The mixers that have an attribute `part`."""
    found = [layer.attention for layer in model.layers if getattr(layer.attention, part, None) is not None]
    assert found, f"no mixer has {part}"
    return found


def zero(part):
    def mutate(model):
        for mixer in mixers(model, part):
            getattr(mixer, part).data.zero_()

    return mutate


def spec(field, **changes):
    """Change the specs of mixers whose spec has a field."""

    def mutate(model):
        found = [mixer for mixer in mixers(model, "spec") if hasattr(mixer.spec, field)]
        assert found
        for mixer in found:
            mixer.spec = replace(mixer.spec, **changes)

    return mutate


def convolve_plainly(model):
    for mixer in mixers(model, "conv"):
        mixer.conv.silu = False


def forget_output_gate(model):
    for mixer in mixers(model, "spec"):
        if hasattr(mixer.spec, "output_gate"):
            mixer.gate = None


def equal_decays(model):
    for mixer in mixers(model, "decays"):
        mixer.decays.fill_(float(mixer.decays.mean()))


def equal_shares(model):
    for layer in model.layers:
        layer.attention_shares = 1.0, 1.0


CASES = {
    "qwen3_next: rates": ("qwen3_next", zero("rate")),
    "qwen3_next: biases of decays": ("qwen3_next", zero("decay_bias")),
    "qwen3_next: gate": ("qwen3_next", spec("gate", gate="sigmoid")),
    "qwen3_next: convolution": ("qwen3_next", convolve_plainly),
    "qwen3_next: output gate": ("qwen3_next", forget_output_gate),
    "kimi_linear: rates": ("kimi_linear", zero("rate")),
    "kimi_linear: gate": ("kimi_linear", spec("gate", gate="silu")),
    "granitemoehybrid: skip": ("granitemoehybrid", zero("skip")),
    "granitemoehybrid: biases of steps": ("granitemoehybrid", zero("step_bias")),
    "granitemoehybrid: rates": ("granitemoehybrid", zero("rate")),
    "nemotron_h: limits of steps": ("nemotron_h", spec("step_limits", step_limits=(0.0, 1e9))),
    "jamba: skip": ("jamba", zero("skip")),
    "jamba: rates": ("jamba", zero("rate")),
    "jamba: biases of steps": ("jamba", zero("step_bias")),
    "minimax: decays": ("minimax", equal_decays),
    "minimax: shares": ("minimax", equal_shares),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_detail_shows(case, tmp_path):
    family, mutate = CASES[case]
    make_tiny(family, tmp_path)
    model = load(tmp_path)
    streams = random_streams()
    right = Driver(model).run(streams, [9, 1])
    with torch.no_grad():
        mutate(model)
    wrong = Driver(model).run(streams, [9, 1])
    assert max(relative_difference(wrong[i], right[i]) for i in streams) > VISIBLE


@pytest.mark.parametrize("family", [family for family in recurrent.CONFIGS if family != "lfm2"])
def test_quantised_layers_compute_the_same_model(family, tmp_path):
    make_tiny(family, tmp_path)
    streams, logits = random_streams(), {}
    for scheme in ("none", "w8a16"):
        config = ModelConfig(
            path=str(tmp_path), name="tiny", dtype="float32", max_model_len=512, load_format="auto", seed=0,
            quantization=scheme, quantization_group_size=32,
        )  # fmt: skip
        model = load_model(config, "cpu", block_size=BLOCK_SIZE, progress=False)
        logits[scheme] = Driver(model).run(streams, [9, 1])
    full, rough = logits["none"], logits["w8a16"]
    # Routing may flip where two experts score alike, so the bulk is compared, not the worst token.
    errors = torch.cat([(rough[i] - full[i]).abs().mean(-1) / full[i].abs().max() for i in streams])
    assert 0 < errors.median() < 0.03
