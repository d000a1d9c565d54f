"""One step on the device: plan → batch → model → logits → tokens."""

from collections.abc import Sequence
from time import perf_counter

import torch

from moesaic.core.batch import Batch
from moesaic.core.routes import RoutedTokens
from moesaic.core.step import Advance, Sampled, StepPlan, StepResult
from moesaic.layers.kv_cache import Cache, StateCache
from moesaic.models.served import ServedModel
from moesaic.worker.inputs import SequenceTable, num_prompt_rows
from moesaic.worker.recorded import RecordedStep
from moesaic.worker.routes import routes_of_step, rows_of
from moesaic.worker.sampler import NOT_FINITE, logprob_rows
from moesaic.worker.watch import Watch


class Runner:
    """Holds the model, its caches and the table of running sequences.

    Args:
        replay: record the model's decode step and replay it, where that can be done.
        watch: looks at what the model computes, to say where it stops being finite.
    """

    def __init__(
        self,
        model: ServedModel,
        caches: Sequence[Cache],
        table: SequenceTable,
        replay: bool,
        watch: Watch | None = None,
    ) -> None:
        self.model = model
        self.watch = watch
        self.caches = caches
        self.states = [cache for cache in caches if isinstance(cache, StateCache)]
        self.table = table
        self._routed: set[int] = set()  # sequences whose routes are returned
        records = replay and model.replayable and table.singles is not None
        self.recorded = RecordedStep(model, caches, table.singles) if records else None

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's tokens and sample where a sequence caught up with its length."""
        self.table.apply(plan)
        if plan.gone:
            self._routed.difference_update(plan.gone)
            self.model.forget(plan.gone)
            self.model.steering.forget(plan.gone)
            if self.watch is not None:
                self.watch.forget(plan.gone)
        if plan.new:
            self._routed.update(new.seq_id for new in plan.new if new.params.return_routed_experts)
            self.model.meet(plan.new)
            self.model.steering.meet(plan.new)
        if not plan.advance:
            return StepResult([], 0.0)
        batch = self.table.batch(plan.advance)
        self.model.steering.begin(batch)
        if self.watch is not None:
            self.watch.begin(batch)
        start = perf_counter()
        self._copy_states(plan.restores)
        logits = self._logits(batch)  # [N, V] float32
        self._copy_states(plan.saves)
        forward_seconds = perf_counter() - start
        routing_seconds = self.model.steering.custom.finish(forward_seconds)
        prompt_logprobs: dict[int, Sampled] = {}
        if not batch.replayable:  # some row may predict a prompt token, or none
            prompt_logprobs, sampling_rows = self._prompt_logprobs(plan.advance, logits)
            if len(sampling_rows) < logits.shape[0]:
                logits = logits[sampling_rows]
        sampled = self._sample([item.seq_id for item in plan.advance if item.samples], logits)
        answers = _merge(plan.advance, sampled, prompt_logprobs)
        if self._routed:
            answers = self._with_routes(plan.advance, batch, answers)
        return StepResult(answers, forward_seconds, routing_seconds, self._all_routes(batch) if plan.records else None)

    def _all_routes(self, batch: Batch) -> RoutedTokens | None:
        """The routes of every token, for a recorder."""
        routes = routes_of_step(self.model.expert_stats, batch.num_tokens)
        return None if routes is None else routes.part(0, batch.num_tokens, 0)

    def _with_routes(self, advance: list[Advance], batch: Batch, answers: list[Sampled]) -> list[Sampled]:
        """The answers, with the routes of the sequences that asked for them."""
        rows, places = rows_of(advance, self._routed)
        routes = routes_of_step(self.model.expert_stats, batch.num_tokens, rows) if places else None
        if routes is None:
            return answers
        by_id = {answer.seq_id: answer for answer in answers}
        for item, first, last in places:
            answer = by_id.setdefault(item.seq_id, Sampled(item.seq_id, None))
            answer.routes = routes.part(first, last, item.start)
        return [by_id[item.seq_id] for item in advance if item.seq_id in by_id]

    def _copy_states(self, copies: list[tuple[int, int]]) -> None:
        """From slot to slot in every layer, in order: what one copy leaves, the next may read."""
        for source, target in copies:
            for cache in self.states:
                cache.copy(source, target)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Logits of the rows that the batch asks for."""
        logits = self.recorded.logits(batch) if self.recorded is not None else None
        if logits is None:
            logits = self.model.logits(self.model(batch, self.caches), batch.logits_rows)
        return logits

    def _prompt_logprobs(self, advance: list[Advance], logits: torch.Tensor) -> tuple[dict[int, Sampled], list[int]]:
        """Log-probabilities of the prompt tokens that the step predicts, and the rows of logits to sample from.

        A sequence's prompt rows stand before its sampling row (`SequenceTable.batch` asks for them in this order).
        """
        results: dict[int, Sampled] = {}
        sampling_rows = []
        row = 0
        for item in advance:
            state = self.table.states[item.seq_id]
            count = num_prompt_rows(item, state)
            if count:
                tokens = self.table.token_ids(state)[item.start + 1 : item.start + 1 + count].tolist()
                best = [state.prompt_logprobs or 0] * count
                rows = logprob_rows(logits[row : row + count], tokens, best)
                results[item.seq_id] = Sampled(item.seq_id, None, prompt_logprobs=rows)
                row += count
            if item.samples:
                sampling_rows.append(row)
                row += 1
        return results, sampling_rows

    def _sample(self, seq_ids: list[int], logits: torch.Tensor) -> list[Sampled]:
        """Draw each sequence's next token from its row of logits `[N, V]`, and append it to the table."""
        states = [self.table.states[seq_id] for seq_id in seq_ids]
        wanted = [i for i, state in enumerate(states) if state.params.logprobs is not None]
        raw = logits[wanted] if wanted else None  # a copy: sampling changes logits in place
        tokens = self.table.sampler.sample(logits, [state.row for state in states], [state.length for state in states])
        self.table.append(states, tokens)
        results = [
            Sampled(seq_id, token) if token is not None else Sampled(seq_id, None, error=self._not_finite(seq_id))
            for seq_id, token in zip(seq_ids, tokens, strict=True)
        ]
        if raw is not None:
            counts = [states[i].params.logprobs or 0 for i in wanted]
            chosen = [tokens[i] or 0 for i in wanted]
            for i, logprobs in zip(wanted, logprob_rows(raw, chosen, counts), strict=True):
                results[i].logprobs = logprobs
        return results

    def _not_finite(self, seq_id: int) -> str:
        """What a sequence is told whose logits are not finite."""
        if self.watch is None:
            return f"{NOT_FINITE} (--diagnose names the place)"
        finding = self.watch.finding_of(seq_id)
        return NOT_FINITE if finding is None else f"the model's logits are not finite: {finding}"


def _merge(advance: list[Advance], sampled: list[Sampled], prompt: dict[int, Sampled]) -> list[Sampled]:
    """One answer a sequence, in the order of the plan."""
    if not prompt:
        return sampled
    drawn = {answer.seq_id: answer for answer in sampled}
    for seq_id, answer in prompt.items():
        drawn.setdefault(seq_id, answer).prompt_logprobs = answer.prompt_logprobs
    return [drawn[item.seq_id] for item in advance if item.seq_id in drawn]
