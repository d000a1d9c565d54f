"""The tokens of one engine step, flattened: no padding, no prefill or decode kinds."""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Batch:
    """T tokens of S sequences. The worker's `inputs` writes every field; the model only reads.

    Attributes:
        token_ids: `[T]` int64.
        positions: `[T]` int64, the token's place in its sequence.
        slots: `[T]` int64, where its KV is written: block id * block size + offset.
        query_start: `[S + 1]` int64, rows query_start[s]:query_start[s+1] are sequence s.
        seq_lens: `[S]` int64, tokens in the cache once this step's are written.
        block_tables: `[R, B]` int64, padded with 0; row table_rows[s] is sequence s's.
        table_rows: `[S]` int64.
        logits_rows: `[N]` int64, rows whose logits are wanted.
        query_lens_host, seq_lens_host, table_rows_host: the same as plain ints, so that no kernel reads them back.
        state_slots: `[S]` int64, where each sequence's recurrent state lies; None where no layer has one.
        replayable: each sequence has one token and samples, and the tensors lie where a recording finds them.
        seq_ids: which sequence each of the S is; per-request routing options hang here.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    table_rows: torch.Tensor
    logits_rows: torch.Tensor
    query_lens_host: list[int]
    seq_lens_host: list[int]
    table_rows_host: list[int]
    seq_ids: list[int]
    state_slots: torch.Tensor | None = None
    replayable: bool = False

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])
