"""Asking the reference: it is loaded, says what it makes of everything, and goes."""

from collections.abc import Sequence
from typing import Any

from moesaic.adapt.proof import compare, prompts
from moesaic.adapt.proof.build import available_memory, bytes_of, fits
from moesaic.adapt.proof.captured import Model, Prompt, greedy
from moesaic.adapt.proof.recorded import Recorded
from moesaic.adapt.proof.reference_hf import HfModel, load_hf
from moesaic.adapt.proof.state import HF, Proof, Tick
from moesaic.core.errors import CheckpointError
from moesaic.worker.memory import size_of


def prompts_of(config: dict[str, Any], path: str, file: str | None, vocab_size: int, longest: int) -> list[list[int]]:
    if file is None:
        return prompts.seeded(config, vocab_size, longest)
    return prompts.from_file(file, path, vocab_size, longest)


def given_prompts(proof: Proof, config: dict[str, Any], file: str | None) -> list[list[int]]:
    spec = proof.whole
    return prompts_of(config, proof.path, file, spec.vocab_size, min(1024, spec.max_position_embeddings))


def traced(model: Model, given: Sequence[list[int]], tick: Tick, trace: bool = True) -> list[Prompt]:
    """What a model makes of every prompt."""
    made = []
    for n, tokens in enumerate(given):
        tick(f"{model.name}: prompt {n + 1} of {len(given)}")
        count = prompts.GREEDY_TOKENS if n in prompts.GREEDY_OF else 0
        prompt = model.run(greedy(model, tokens, count), trace)
        prompt.start = len(tokens)
        made.append(prompt)
    return made


def ask_reference(
    proof: Proof, reference: str | None, recorded: Recorded | None, given: list[list[int]], trusted: bool
) -> None:
    """Load the reference, keep what it says, and let it go."""
    proof.lone, proof.fixed = compare.lone_probes(proof.spec), compare.fixed_probes(proof.spec)
    if recorded is not None:
        proof.prompts, proof.whole_run = list(recorded.prompts), f"{recorded.path}, recorded from {recorded.source}"
        _take_hidden(proof)
        if fits(proof.accounts, proof.spec, "float32"):
            oracle = proof.oracle()
            _ask_alone(proof, oracle)
            if not proof.traced:
                proof.traced = [oracle.run(prompt.tokens, trace=True) for prompt in proof.prompts]
                proof.layers = proof.alone
            return
        proof.lone, proof.fixed = [], []
        proof.notes.append(
            f"our own plain fp32 model takes {size_of(bytes_of(proof.accounts, proof.spec, 'float32'))}, and "
            f"{size_of(available_memory())} are free: what the file does not tell of is not compared"
        )
        return
    model: Model
    try:
        proof.tick("loading transformers' model in fp32")
        model = load_hf(proof.path, trusted, len(proof.spec.layers) if proof.partial else None)
    except CheckpointError as error:
        if reference == HF:
            raise
        proof.notes.append(f"no independent reference: {error}")
        proof.notes.append("a recorded one (--reference FILE) would prove what our own plain fp32 model cannot")
        proof.limits.append("by our own plain model alone")
        model = proof.oracle()
    _ask_alone(proof, model)
    proof.traced = proof.prompts = traced(model, given, proof.tick)
    proof.layers = proof.whole_run = f"{model.name}; shares {model.shares}"
    _align(proof, model)


def _align(proof: Proof, model: Model) -> None:
    """How the reference's layers and experts stand to ours."""
    ours = len(proof.spec.layers)
    if ours % model.num_layers:
        proof.notes.append(f"the reference has {model.num_layers} layers and the spec {ours}: stage 3 is left out")
        proof.traced = []
    else:
        proof.group = ours // model.num_layers


def _take_hidden(proof: Proof) -> None:
    """Stage 3 by what a file tells of the layers, where it does."""
    told = [prompt for prompt in proof.prompts if prompt.inputs]
    counts, ours = {len(prompt.ops) for prompt in told}, len(proof.spec.layers)
    if len(counts) == 1 and min(counts) > 0 and ours % min(counts) == 0:
        proof.traced, proof.layers, proof.group = told, proof.whole_run, ours // min(counts)


def _ask_alone(proof: Proof, model: Model) -> None:
    """What the reference's experts give by themselves."""
    proof.tick(f"{model.name}: experts by themselves")
    proof.alone = f"{model.name}; shares {model.shares}"
    if isinstance(model, HfModel) and len(model.experts) != len(compare.moes_of(proof.spec)):
        return
    for probe in (*proof.lone, *proof.fixed):
        probe.output = model.apply(probe)
