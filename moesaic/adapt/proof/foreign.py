"""The proof of models that no spec of ours describes: transformers' own code with our parts, and hand-written classes.

There is nothing to take apart, so the checkpoint's numbers are looked at and the ends are compared.
"""

from time import perf_counter
from typing import Any

from moesaic.adapt.proof import ends, prompts, scan
from moesaic.adapt.proof.captured import TOLERANCES, Prompt, greedy
from moesaic.adapt.proof.recorded import load_recorded
from moesaic.adapt.proof.reference_hf import load_hf
from moesaic.adapt.proof.results import Stage, Verification
from moesaic.core.errors import ConfigError
from moesaic.models.hf_backend.facts import ForeignSpec
from moesaic.models.load import describe_model
from moesaic.weights.codecs import decoded
from moesaic.weights.dtypes import FLOAT_DTYPES
from moesaic.weights.plan import Copy, LoadPlan
from moesaic.weights.sources import open_source

NOT_APART = "no spec of ours describes this model, so it is not taken apart"


def verify_foreign(
    path: str,
    config: dict[str, Any],
    reference: str | None,
    dtype: str,
    prompts_file: str | None,
    trust_remote_code: bool,
    layers: int | None,
    tick: Any,
) -> Verification:
    """As `run.verify`, with stages 1 to 3 left out."""
    start = perf_counter()
    if layers is not None:
        raise ConfigError("--layers needs an architecture that a spec of ours describes")
    name, spec = describe_model(path, trust_remote_code=trust_remote_code)
    source = decoded(open_source(path), config)
    floats = {n: info.shape for n, info in source.tensors.items() if info.dtype in FLOAT_DTYPES and info.shape}
    accounts = scan.Accounts(source, LoadPlan([Copy(n, (), n) for n in floats], [], []), floats)
    stages = [scan.scan(accounts, lambda name: True, tick)]
    notes = [f"{NOT_APART}; transformers accounts for its tensors when it loads them"]
    told = ""
    if stages[0].status != "failed":
        given, told = _expected(path, config, reference, spec, prompts_file, trust_remote_code, tick)
        stages += [Stage(number, "skipped", "", NOT_APART) for number in (1, 2, 3)]
        whole = isinstance(spec, ForeignSpec) and spec.whole_prompts
        tick("loading the engine")
        engine = ends.whole_engine(path, spec, whole, dtype=dtype, trust_remote_code=trust_remote_code)
        stage, pictures = ends.end_to_end(engine, given, told, dtype, TOLERANCES[dtype])
        stages.append(stage)
        seconds = perf_counter() - start
        return Verification(
            path, name, dtype, told, tuple(stages), notes=tuple(notes), seconds=seconds, pictures=pictures
        )
    return Verification(path, name, dtype, told, tuple(stages), notes=tuple(notes), seconds=perf_counter() - start)


def _expected(
    path: str, config: dict[str, Any], reference: str | None, spec: Any, file: str | None, trusted: bool, tick: Any
) -> tuple[list[Prompt], str]:
    if reference not in (None, "hf"):
        recorded = load_recorded(str(reference), spec.vocab_size)
        return list(recorded.prompts), f"{recorded.path}, recorded from {recorded.source}"
    tick("loading transformers' model in fp32")
    model = load_hf(path, trusted)
    longest = min(1024, spec.max_position_embeddings)
    given = prompts.seeded(config, spec.vocab_size, longest)
    if file is not None:
        given = prompts.from_file(file, path, spec.vocab_size, longest)
    made = []
    for n, tokens in enumerate(given):
        prompt = model.run(greedy(model, tokens, prompts.GREEDY_TOKENS if n in prompts.GREEDY_OF else 0), False)
        prompt.start = len(tokens)
        made.append(prompt)
    return made, f"{model.name}; shares modelling code with the engine where that runs transformers'"
