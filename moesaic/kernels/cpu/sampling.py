"""Sampling and log-probabilities in C++: the same tokens as `kernels.reference_sampling` gives, bit for bit.

What a sequence asks for is written once into a table of structs, by slot; a step passes slots and lengths.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moesaic.core.request import LogprobRow
from moesaic.core.sampling_params import SamplingParams
from moesaic.kernels.cpu.calls import Count, Kernel, pointer
from moesaic.kernels.reference_sampling import MOST_TEMPERATURE, Tokens, logprob_row


class ParamsStruct(ctypes.Structure):
    """`moesaic_sampling_params`."""

    _fields_ = (
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("presence_penalty", ctypes.c_double),
        ("frequency_penalty", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("tokens", ctypes.c_void_p),
        ("stop_ids", ctypes.c_void_p),
        ("bias_ids", ctypes.c_void_p),
        ("bias_values", ctypes.c_void_p),
        ("num_stops", ctypes.c_int64),
        ("num_biases", ctypes.c_int64),
        ("prompt_len", ctypes.c_int64),
        ("min_tokens", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("temperature", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
    )


class SampleArguments(ctypes.Structure):
    """`moesaic_sample_args`."""

    _fields_ = (
        ("rows", Count),
        ("logits", ctypes.c_void_p),
        ("vocab", ctypes.c_int64),
        ("params", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
    )


class LogprobsArguments(ctypes.Structure):
    """`moesaic_logprobs_args`."""

    _fields_ = (
        ("rows", Count),
        ("logits", ctypes.c_void_p),
        ("vocab", ctypes.c_int64),
        ("tokens", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("most", ctypes.c_int64),
        ("own", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
        ("found", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
    )


_sample = Kernel("sample")
_logprobs = Kernel("logprobs")


class ParamsTable:
    """What the sequences in each slot ask for, and the arguments of a call, which stay: a step makes nothing anew."""

    def __init__(self, num_slots: int) -> None:
        self.structs = (ParamsStruct * num_slots)()
        self._kept: list[Any] = [None] * num_slots  # what the structs point to
        integers = ctypes.c_int64 * num_slots
        self.rows, self.slots, self.lengths, self.tokens = ctypes.c_int64(), integers(), integers(), integers()
        self.logits: Tensor | None = None  # of the last call: a replayed step's are the same tensor again and again
        self.arguments = SampleArguments(
            rows=ctypes.pointer(self.rows),
            params=ctypes.addressof(self.structs),
            slots=ctypes.addressof(self.slots),
            lengths=ctypes.addressof(self.lengths),
            tokens=ctypes.addressof(self.tokens),
        )

    def take(self, logits: Tensor) -> None:
        """Point the arguments to these logits `[N, V]`.

        Raises:
            ValueError: they are not float32, contiguous and on the host, or have more rows than there are slots.
        """
        num_rows, vocab = logits.shape
        if num_rows > len(self.structs):
            raise ValueError(f"{num_rows} rows of logits for a table of {len(self.structs)} slots")
        self.arguments.logits, self.arguments.vocab, self.rows.value = pointer(logits), vocab, num_rows
        self.logits = logits

    def set(
        self,
        slot: int,
        params: SamplingParams,
        seed: int,
        tokens: Tokens,
        prompt_len: int,
        stop_token_ids: Sequence[int],
    ) -> None:
        """Write a slot.

        Args:
            tokens: where the sequence's prompt and output are and will be: contiguous int64. The table keeps it alive
                and reads as many of it as `sample` is told.
            stop_token_ids: cannot be drawn before min_tokens.
        """
        if tokens.dtype != "int64" or not tokens.flags.c_contiguous:
            raise ValueError(f"tokens must be contiguous int64, got {tokens.dtype}, strides {tokens.strides}")
        num_stops, num_biases = len(stop_token_ids), len(params.logit_bias)
        stops = (ctypes.c_int64 * num_stops)(*stop_token_ids)
        bias_ids = (ctypes.c_int64 * num_biases)(*params.logit_bias)
        bias_values = (ctypes.c_float * num_biases)(*params.logit_bias.values())
        self._kept[slot] = (tokens, stops, bias_ids, bias_values)
        self.structs[slot] = ParamsStruct(
            params.top_p,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            seed & (2**64 - 1),
            tokens.ctypes.data,
            ctypes.addressof(stops),
            ctypes.addressof(bias_ids),
            ctypes.addressof(bias_values),
            num_stops,
            num_biases,
            prompt_len,
            params.min_tokens,
            max(0, min(params.top_k, 2**62)),
            0.0 if params.greedy else min(params.temperature, MOST_TEMPERATURE),
            params.repetition_penalty,
        )


def sample(logits: Tensor, table: ParamsTable, slots: Sequence[int], lengths: Sequence[int]) -> list[int | None]:
    """Choose one token a row.

    Args:
        logits: `[N, V]` float32 on the host, contiguous; changed in place where a row's parameters ask for it.
        slots: N places of the table.
        lengths: N, tokens of each row's sequence so far.

    Returns:
        N token ids; None for a row whose logits are not finite.
    """
    if logits is not table.logits:
        table.take(logits)
    num_rows = table.rows.value
    if not num_rows == len(slots) == len(lengths):
        raise ValueError(f"{num_rows} rows of logits, {len(slots)} slots, {len(lengths)} lengths")
    if num_rows and not 0 <= min(slots) <= max(slots) < len(table.structs):
        raise ValueError(f"slots {list(slots)} of a table of {len(table.structs)}")
    for i in range(num_rows):
        table.slots[i], table.lengths[i] = slots[i], lengths[i]
    _sample(table.arguments)
    return [token if token >= 0 else None for token in table.tokens[:num_rows]]


def logprob_rows(logits: Tensor, token_ids: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log-probabilities of raw logits: each row's own token first, then its `count` best, best first, equals by id.

    Args:
        logits: `[N, V]` float32 on the host, contiguous, before any parameter was applied.
    """
    num_rows, vocab = logits.shape
    if not num_rows == len(token_ids) == len(counts):
        raise ValueError(f"{num_rows} rows of logits, {len(token_ids)} tokens, {len(counts)} counts")
    most = min(max(counts, default=0), vocab)
    integers = ctypes.c_int64 * num_rows
    rows, tokens, wanted, ranks, found = (
        ctypes.c_int64(num_rows),
        integers(*token_ids),
        integers(*counts),
        integers(),
        integers(),
    )
    own, values = torch.empty(num_rows), torch.empty(num_rows, most)
    ids = torch.empty(num_rows, most, dtype=torch.int64)
    _logprobs(
        LogprobsArguments(
            ctypes.pointer(rows),
            pointer(logits),
            vocab,
            ctypes.addressof(tokens),
            ctypes.addressof(wanted),
            most,
            pointer(own),
            ctypes.addressof(ranks),
            ctypes.addressof(found),
            pointer(ids, torch.int64),
            pointer(values),
        )
    )
    logprobs, best, best_logprobs = own.tolist(), ids.tolist(), values.tolist()
    return [
        logprob_row(token_ids[i], logprobs[i], ranks[i], best[i][: found[i]], best_logprobs[i][: found[i]])
        for i in range(num_rows)
    ]
