"""One step on the device: plan → batch → model → logits → tokens."""

from collections.abc import Sequence
from time import perf_counter

import torch

from moesaic.core.errors import MoesaicError
from moesaic.core.request import LogprobRow
from moesaic.core.step import Advance, Sampled, StepPlan, StepResult
from moesaic.layers.kv_cache import KVCache
from moesaic.models.decoder import Decoder
from moesaic.worker.inputs import SequenceState, SequenceTable, num_prompt_rows
from moesaic.worker.sampler import NOT_FINITE, SamplingRow, logprob_rows, sample


class Runner:
    """Holds the model, its caches and the table of running sequences."""

    def __init__(self, model: Decoder, caches: Sequence[KVCache], table: SequenceTable) -> None:
        self.model = model
        self.caches = caches
        self.table = table

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's tokens and sample where a sequence caught up with its length."""
        self.table.apply(plan)
        if not plan.advance:
            return StepResult([], 0.0)
        batch = self.table.batch(plan.advance)
        start = perf_counter()
        hidden = self.model(batch, self.caches)  # [T, hidden]
        logits = self.model.logits(hidden[batch.logits_rows])  # [N, V] float32
        forward_seconds = perf_counter() - start
        return StepResult(self._sample(plan.advance, logits), forward_seconds)

    def _sample(self, advance: list[Advance], logits: torch.Tensor) -> list[Sampled]:
        """Split the rows of logits into prompt rows and sampling rows, and answer for each sequence."""
        results: list[Sampled] = []
        sampling: list[tuple[Sampled, SequenceState, int]] = []  # result, state, row of logits
        row = 0
        for item in advance:
            state = self.table.states[item.seq_id]
            prompt_rows = num_prompt_rows(item, state)
            if not (item.samples or prompt_rows):
                continue
            result = Sampled(item.seq_id, None)
            if prompt_rows:
                result.prompt_logprobs = self._prompt_logprobs(item, state, logits[row : row + prompt_rows])
                row += prompt_rows
            if item.samples:
                sampling.append((result, state, row))
                row += 1
            results.append(result)
        if sampling:
            self._choose(logits, sampling, all_rows=len(sampling) == logits.shape[0])
        return results

    def _choose(self, logits: torch.Tensor, sampling: list[tuple[Sampled, SequenceState, int]], all_rows: bool) -> None:
        """Sample the given rows of logits and write tokens and log-probabilities into the results."""
        if not all_rows:
            logits = logits[[row for _, _, row in sampling]]
        wanted = [i for i, (_, state, _) in enumerate(sampling) if state.params.logprobs is not None]
        raw = logits[wanted] if wanted else None  # a copy: sampling changes logits in place
        rows = [self._sampling_row(state) for _, state, _ in sampling]
        tokens = sample(logits, rows)
        for (result, _, _), token in zip(sampling, tokens, strict=True):
            result.token_id = token
            if token is None:
                result.error = NOT_FINITE
            else:
                self.table.append(result.seq_id, token)
        if raw is not None:
            counts = [sampling[i][1].params.logprobs or 0 for i in wanted]
            chosen = [sampling[i][0].token_id or 0 for i in wanted]
            for i, logprobs in zip(wanted, logprob_rows(raw, chosen, counts), strict=True):
                sampling[i][0].logprobs = logprobs

    def _sampling_row(self, state: SequenceState) -> SamplingRow:
        return SamplingRow(
            state.params, state.seed, state.prompt_len, self.table.token_ids(state), state.stop_token_ids
        )

    def _prompt_logprobs(self, item: Advance, state: SequenceState, logits: torch.Tensor) -> list[LogprobRow]:
        """Rows for the prompt tokens that this chunk predicts: positions start + 1 and on."""
        if state.prompt_logprobs is None:
            raise MoesaicError("prompt log-probabilities were not asked for")
        first = item.start + 1
        tokens = self.table.token_ids(state)[first : first + logits.shape[0]].tolist()
        return logprob_rows(logits, tokens, [state.prompt_logprobs] * len(tokens))
