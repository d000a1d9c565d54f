"""Architectures that transformers' own code computes, against transformers: the same logits, the same greedy tokens.

A sample of them runs by default, one for each way in which they differ from what serves them; `make parity` runs all.
"""

import pytest
import torch

from moesaic.models.hf_backend.allowed import ALLOWED
from tests.families.backend import FAMILIES, model_of
from tests.parity.driver import Driver, load, relative_difference
from tests.parity.greedy import check_greedy, generated
from tests.parity.record import record
from tests.parity.test_families import CHUNKS, TOLERANCE, random_streams, reference_logits
from tests.tiny_models import draw

SAMPLE = (
    "AfmoeForCausalLM",  # windows
    "MiMoV2FlashForCausalLM",  # sinks, values narrower than keys
    "Glm4vMoeForConditionalGeneration",  # a tower for images, positions of three parts
    "LongcatFlashForCausalLM",  # two attentions a layer, transformers' experts
    "NemotronHForCausalLM",  # recurrent state, experts without gates
    "DeepseekV32ForCausalLM",  # a sparse indexer that reads the mask
)
LOOSE = {"DbrxForCausalLM": 1e-3}  # transformers' own decoding differs by 1e-4 from its own prefill
WAYS = {"halves": 2, "thirds": 3}  # which part of a stream is its prompt, where prompts are computed whole

ALL = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.parity_full) for name in sorted(ALLOWED)]


def test_the_list_holds_what_is_tested():
    assert sorted(ALLOWED) == sorted(FAMILIES)


@pytest.mark.parametrize("architecture", ALL)
def test_logits(architecture, tmp_path):
    check_logits(architecture, tmp_path, "auto")


@pytest.mark.parametrize("architecture", SAMPLE)
def test_logits_of_the_reference_backend(architecture, tmp_path):
    check_logits(architecture, tmp_path, "reference")


def check_logits(architecture, tmp_path, backend):
    """The model's logits, in batches and in steps, are those of transformers."""
    reference = saved(architecture, tmp_path)
    streams = random_streams()
    expected = reference_logits(reference, streams)
    model = load(tmp_path, backend=backend, model_impl="transformers")
    ways = whole_then_single(model, streams) if model.spec.whole_prompts else in_chunks(model, streams)
    apart = ALLOWED[architecture].resumes == "replayed"  # output is not computed as prompts are
    differences = {}
    for name, logits in ways.items():
        wanted = decoded(reference, streams, WAYS[name]) if apart else expected
        differences[name] = max(relative_difference(logits[i], wanted[i]) for i in streams)
    for name, difference in differences.items():
        assert difference < LOOSE.get(architecture, TOLERANCE), f"{architecture}, {name}: {difference:.2e}"
    record(architecture, backend, max(differences.values()), model.spec)
    ours = ALLOWED[architecture].experts == "ours"
    assert bool(model.expert_stats.counts.sum()) or not ours, "no expert was asked for"


def saved(architecture, path, seed=0):
    """The part of transformers' model that generates text; the whole is saved in `path`."""
    model = draw(model_of(architecture), seed=seed)
    model.save_pretrained(path)
    return getattr(model, "thinker", model)


def in_chunks(model, streams):
    return {name: Driver(model).run(streams, chunks) for name, chunks in CHUNKS.items()}


def decoded(reference, streams, part):
    """transformers' logits of streams whose first part is a prompt, the rest its output."""
    expected = {}
    for i, tokens in streams.items():
        start = -(-len(tokens) // part)
        with torch.no_grad():
            output = reference(torch.tensor([tokens[:start]]), use_cache=True)
            rows = [output.logits[0]]
            for token in tokens[start:]:
                output = reference(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
                rows.append(output.logits[0])
        expected[i] = torch.cat(rows)
    return expected


def whole_then_single(model, streams):
    """The first half of each stream at once, then a token a step; and another batch of the same."""
    results = {}
    for name, part in WAYS.items():
        driver = Driver(model)
        starts = {i: -(-len(tokens) // part) for i, tokens in streams.items()}
        logits = {i: [rows] for i, rows in driver.step({i: t[: starts[i]] for i, t in streams.items()}).items()}
        for at in range(max(map(len, streams.values()))):
            now = {i: [t[starts[i] + at]] for i, t in streams.items() if starts[i] + at < len(t)}
            for i, rows in (driver.step(now) if now else {}).items():
                logits[i].append(rows)
        model.forget(streams)
        results[name] = {i: torch.cat(rows) for i, rows in logits.items()}
    return results


@pytest.mark.parametrize("architecture", ALL)
def test_greedy_tokens(architecture, tmp_path):
    reference = saved(architecture, tmp_path, seed=3)
    budget = 48 if ALLOWED[architecture].mode == "request" else 16
    check_greedy(generated(reference), tmp_path, max_num_batched_tokens=budget, model_impl="transformers")
