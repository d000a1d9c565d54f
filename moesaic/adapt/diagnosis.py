"""Is a model sound: all its weights looked at, then a few prompts with a look at what every operation gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from moesaic.core.errors import ConfigError
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.frontend import Prompt
from moesaic.engine.llm_engine import LLMEngine
from moesaic.engine.tokenizer import Tokenizer
from moesaic.weights.report import LoadReport
from moesaic.worker.findings import Finding, WeightFault
from moesaic.worker.watch import Watch

NEAR = 0.1  # of a dtype's range, from which on a value is near its end
MOST_PEAKS = 5
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13, 21, 34,",
)
MIXED_TOKENS = 256  # of a prompt from all over the vocabulary, so that many experts are reached


@dataclass(frozen=True)
class Peak:
    """The largest absolute value that a place gave.

    Attributes:
        share: of the range of its dtype.
    """

    place: str
    value: float
    dtype: str
    share: float


@dataclass(frozen=True)
class Run:
    """One prompt's completion.

    Attributes:
        prompt: its text, or what it is in words.
        error: why it failed; None where it did not.
    """

    prompt: str
    num_tokens: int
    num_generated: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        num_weights: that were looked at.
        faults: of weights.
        findings: places where numbers stopped being finite, as the prompts came upon them.
        experts_reached, num_experts: over all layers; 0 of 0 where nobody counts.
        peaks: the largest values that were given, the largest share of its dtype's range first.
    """

    model: str
    architecture: str
    dtype: str
    num_weights: int
    faults: list[WeightFault]
    findings: list[Finding]
    runs: list[Run]
    experts_reached: int
    num_experts: int
    peaks: list[Peak]

    @property
    def sound(self) -> bool:
        """Nothing is wrong with it."""
        return not (self.faults or self.findings or any(run.error is not None for run in self.runs))

    @property
    def near_overflow(self) -> list[Peak]:
        """Places that come near the end of their dtype: they may overflow for other prompts."""
        return [peak for peak in self.peaks if peak.share >= NEAR]


def diagnose(model: str, prompts: Sequence[Prompt] = (), max_tokens: int = 8, **options: Any) -> Diagnosis:
    """Load a model, look at all its weights, and complete a few prompts with a look at every operation.

    Args:
        prompts: texts or token ids; by default texts, and tokens from all over the vocabulary.
        max_tokens: of each completion.
        options: further fields of EngineArgs.

    Raises:
        ConfigError, CheckpointError: the model cannot be loaded.
    """
    args = EngineArgs(**{**options, "model": model, "diagnose": True, "skip_tokenizer_init": True})
    engine = LLMEngine(args)
    worker, info = engine.engine.executor, engine.engine.info
    watch = worker.runner.watch
    assert watch is not None
    told = getattr(worker.model, "load_report", LoadReport()).not_finite
    tensors = {weight.parameter: weight.tensor for weight in told}
    faults = [replace(fault, tensor=tensors.get(fault.name)) for fault in watch.weights.faults()]
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    runs = [_run(engine, name, tokens, params) for name, tokens in _tokens(args, info, prompts)]
    reached, experts = _experts(worker.model)
    return Diagnosis(
        model=model,
        architecture=info.architecture,
        dtype=info.dtype,
        num_weights=len(watch.weights.views),
        faults=faults,
        findings=list(watch.findings),
        runs=runs,
        experts_reached=reached,
        num_experts=experts,
        peaks=_peaks(watch),
    )


def _tokens(args: EngineArgs, info: Any, prompts: Sequence[Prompt]) -> list[tuple[str, list[int]]]:
    """What each prompt is called, and its tokens."""
    if not prompts:
        generator = torch.Generator().manual_seed(args.seed)
        count = max(1, min(MIXED_TOKENS, info.max_model_len - 16))
        mixed = torch.randint(info.vocab_size, (count,), generator=generator).tolist()
        try:
            return [*_tokens(args, info, TEXTS), (f"{count} tokens from all over the vocabulary", mixed)]
        except ConfigError:  # it comes without a tokenizer
            return [(f"{count} tokens from all over the vocabulary", mixed)]
    tokenizer = None
    found = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            ids = prompt["prompt_token_ids"] if isinstance(prompt, dict) else list(prompt)
            found.append((f"token ids {ids}", ids))
            continue
        tokenizer = tokenizer or Tokenizer(args.tokenizer or info.model_path)
        found.append((prompt, tokenizer.encode(prompt)))
    return found


def _run(engine: LLMEngine, name: str, tokens: list[int], params: SamplingParams) -> Run:
    """Raises RequestError."""
    output = engine.generate({"prompt_token_ids": tokens}, params)
    return Run(name, len(tokens), len(output.outputs[0].token_ids), output.error)


def _experts(model: Any) -> tuple[int, int]:
    """How many experts got a token, and how many there are."""
    stats = getattr(model, "expert_stats", None)
    if stats is None:
        return 0, 0
    return int((stats.counts > 0).sum()), sum(tap.num_experts for tap in stats.taps)


def _peaks(watch: Watch) -> list[Peak]:
    found = [
        Peak(name, value, str(dtype).removeprefix("torch."), value / torch.finfo(dtype).max)
        for name, (value, dtype) in watch.peaks.items()
    ]
    found.sort(key=lambda peak: (-peak.share, peak.place))
    return [peak for i, peak in enumerate(found) if i < MOST_PEAKS or peak.share >= NEAR]
