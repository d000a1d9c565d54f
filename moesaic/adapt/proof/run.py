"""The way through a proof: `verify`, and `record`, which writes what a later one is held against."""

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from moesaic.adapt.proof import compare, ends, scan
from moesaic.adapt.proof.asking import ask_reference, given_prompts, prompts_of, traced
from moesaic.adapt.proof.build import decoder, fits, in_layers, require_memory
from moesaic.adapt.proof.captured import TOLERANCES, Model
from moesaic.adapt.proof.ours import OurModel
from moesaic.adapt.proof.recorded import load_recorded, save_recorded
from moesaic.adapt.proof.reference_hf import load_hf
from moesaic.adapt.proof.results import NAMES, Stage, Verification
from moesaic.adapt.proof.search import Found, search
from moesaic.adapt.proof.state import HF, Proof, Tick, shortened, silent
from moesaic.core.errors import CheckpointError, ConfigError
from moesaic.engine.resolve import find_model
from moesaic.kernels.cpu.library import describe
from moesaic.models.implementation import choose_implementation
from moesaic.models.load import read_config, spec_of
from moesaic.models.registry import Architecture
from moesaic.models.spec import LatentAttentionSpec, ModelSpec

SEARCH_SECONDS = 120.0


def verify(
    path: str,
    reference: str | None = None,
    *,
    arch: str | None = None,
    dtype: str = "float32",
    quantization: str = "none",
    layers: int | None = None,
    prompts_file: str | None = None,
    trust_remote_code: bool = False,
    search_seconds: float = SEARCH_SECONDS,
    tick: Tick = silent,
) -> Verification:
    """Prove, stage by stage, that the engine computes what a reference computes; stop where it does not, and say why.

    Args:
        path: folder of the checkpoint, or a model's name.
        reference: "hf" for transformers' own model, or a file that `record` wrote; None for transformers' model where
            there is one, else our own plain fp32 model.
        arch: file with the architecture, as `--arch`.
        dtype: the engine's: "float32", "bfloat16" or "float16". References are in fp32.
        quantization: of a quantised checkpoint, "none" for the floats that its codes stand for, "auto" for the codes as
            they are served; then tolerances are bfloat16's.
        layers: prove the first so many alone, where the whole does not fit into memory.
        prompts_file: lines of text or of token ids, instead of seeded ones.
        search_seconds: for trying causes.
        tick: is told what is being done.

    Raises:
        ConfigError, CheckpointError: there is nothing to prove, or not with this reference or memory.
    """
    start = perf_counter()
    if dtype not in TOLERANCES:
        raise ConfigError(f"dtype must be one of {', '.join(TOLERANCES)}, got {dtype!r}")
    if quantization not in ("none", "auto"):
        raise ConfigError(f"quantization must be none or auto, got {quantization!r}")
    path = find_model(path)
    config = read_config(path)
    chosen = choose_implementation(config, path, "auto", trust_remote_code, arch)
    if not isinstance(chosen, Architecture) or chosen.spec is None:
        from moesaic.adapt.proof.foreign import verify_foreign

        return verify_foreign(path, config, reference, dtype, prompts_file, trust_remote_code, layers, tick)
    whole = spec_of(config, os.path.join(path, "config.json"), arch)[1]
    assert isinstance(whole, ModelSpec)
    spec = shortened(whole, layers)
    tick("accounting for every tensor")
    try:
        accounts = scan.account(path, chosen, whole)
    except CheckpointError as error:
        return Verification(path, chosen.name, dtype, "", (scan.refused(error),), seconds=perf_counter() - start)
    proof = Proof(path, chosen, whole, spec, accounts, arch, dtype, quantization, spec is not whole, tick)
    recorded = load_recorded(str(reference), whole.vocab_size) if reference not in (None, HF) else None
    if recorded is not None and proof.partial:
        raise ConfigError(
            "--layers proves a part of the model, and a recorded reference tells of the whole: choose one"
        )
    if recorded is None:
        require_memory(accounts, spec, dtype)
    proof.stages.append(_timed(lambda: scan.scan(accounts, lambda name: in_layers(name, len(spec.layers)), tick)))
    found = Found()
    if proof.stages[0].status != "failed":
        given = given_prompts(proof, config, prompts_file)
        ask_reference(proof, reference, recorded, given, trust_remote_code)
        gc.collect()
        _stages(proof)
        gc.collect()
        found = _search(proof, search_seconds)
    return Verification(
        path,
        proof.architecture.name,
        dtype,
        proof.whole_run,
        tuple(proof.stages),
        found.causes,
        found.evidence,
        found.tried,
        tuple(proof.notes),
        tuple(proof.limits),
        perf_counter() - start,
        proof.pictures,
    )


def record(
    path: str,
    file: str,
    source: str = HF,
    *,
    arch: str | None = None,
    prompts_file: str | None = None,
    trust_remote_code: bool = False,
    tick: Tick = silent,
) -> str:
    """Write a reference that `verify` takes, and say who computed it.

    Args:
        source: "hf" for transformers' own model, "engine" for our own plain fp32 one.

    Raises:
        ConfigError, CheckpointError: the model cannot be had, or the file not written.
    """
    path = find_model(path)
    config = read_config(path)
    model: Model
    if source == "engine":
        architecture, spec = spec_of(config, os.path.join(path, "config.json"), arch)
        if not isinstance(spec, ModelSpec):
            raise ConfigError(
                f"{architecture.name} is a class of its own, without a plain fp32 form: record it from hf"
            )
        accounts = scan.account(path, architecture, spec)
        require_memory(accounts, spec, "float32")
        model = OurModel(decoder(path, architecture, spec, spec, accounts, "float32", "reference"))
        vocab_size, longest = spec.vocab_size, spec.max_position_embeddings
    else:
        tick("loading transformers' model")
        model = load_hf(path, trust_remote_code)
        text = model.model.config.get_text_config(decoder=True)
        vocab_size, longest = text.vocab_size, getattr(text, "max_position_embeddings", 4096)
    given = prompts_of(config, path, prompts_file, vocab_size, longest)
    save_recorded(file, traced(model, given, tick), model.name)
    return model.name


def _stages(proof: Proof) -> None:
    """Stages 1 to 4; it ends at the first that fails."""
    proof.tick("loading the engine")
    served: ends.Ends
    try:
        if proof.partial:
            parts = proof.path, proof.architecture, proof.whole, proof.spec, proof.accounts
            engine = OurModel(decoder(*parts, proof.dtype, "auto"), proof.group)
            served = ends.BareDecoder(engine)
            proof.limits.append(f"the first {len(proof.spec.layers)} of {len(proof.whole.layers)} layers")
        else:
            options = {"dtype": proof.dtype, "arch": proof.arch, "quantization": proof.quantization}
            whole = ends.whole_engine(proof.path, proof.spec, False, **options)
            served, model = whole, ends.decoder_of(whole)
            assert model is not None
            engine = OurModel(model, proof.group)
    except CheckpointError as error:
        proof.stages[0] = scan.refused(error)
        return
    tolerance = TOLERANCES[proof.exactness]

    def last() -> Stage:
        stage, pictures = ends.end_to_end(served, proof.prompts, proof.whole_run, proof.exactness, tolerance)
        proof.pictures |= pictures
        return stage

    for number, make in enumerate(
        (
            lambda: compare.one_expert(engine, proof.lone, proof.alone, tolerance),
            lambda: compare.fixed_routes(engine, proof.fixed, proof.alone, tolerance),
            lambda: compare.layer_by_layer(engine, proof.traced, proof.layers, proof.exactness, tolerance),
            last,
        ),
        1,
    ):
        proof.tick(f"stage {number}: {NAMES[number]}")
        proof.stages.append(_timed(make))
        if proof.stages[-1].status == "failed":
            break
    _note_coverage(proof, engine)


def _note_coverage(proof: Proof, engine: OurModel) -> None:
    """What the prompts do not reach, so that no proof is read into it."""
    if describe().startswith("unavailable"):
        proof.notes.append(f"the C++ kernels are {describe()}: the engine computed with plain torch")
    if engine.moes:
        met = set()
        for prompt in proof.prompts:
            routed = [ops["chosen experts"] for ops in engine.run(prompt.tokens, True).ops if "chosen experts" in ops]
            met |= {(m, e) for m, ids in enumerate(routed) for e in ids.unique().tolist()}
        total = sum(moe.spec.num_choices for moe in engine.moes)
        if len(met) < total:
            proof.notes.append(f"the prompts reach {len(met)} of {total} experts: of the others, routing says nothing")
    longest = max(len(prompt.tokens) for prompt in proof.prompts)
    windows = [getattr(layer.attention, "window", None) for layer in proof.spec.layers]
    beyond = [w for w in windows if w is not None and w >= longest]
    if beyond:
        proof.notes.append(f"prompts of at most {longest} tokens do not reach the end of windows of {min(beyond)}")
    selected = [la.attention.indexer for la in proof.spec.layers if isinstance(la.attention, LatentAttentionSpec)]
    if any(indexer is not None and getattr(indexer, "top_k", 0) >= longest for indexer in selected):
        proof.notes.append(f"prompts of at most {longest} tokens are attended whole: the indexer leaves nothing out")


def _search(proof: Proof, seconds: float) -> Found:
    """Try causes where a stage failed."""
    failed = proof.stages[-1]
    if failed.status != "failed" or failed.number == 0 or seconds <= 0:
        return Found()
    if not fits(proof.accounts, proof.spec, "float32"):
        proof.notes.append("causes are not tried: our own plain fp32 model does not fit into memory")
        return Found()
    proof.tick("loading our own plain fp32 model, to try causes on")
    probes = proof.lone if failed.number == 1 else proof.fixed
    given = proof.traced if failed.number == 3 else proof.prompts
    found = search(proof.oracle(), failed, probes, given, TOLERANCES[proof.exactness], seconds, proof.tick)
    if found.note:
        proof.notes.append(found.note)
    return found


def _timed(make: Callable[[], Stage]) -> Stage:
    start = perf_counter()
    stage = make()
    return replace(stage, seconds=perf_counter() - start)
