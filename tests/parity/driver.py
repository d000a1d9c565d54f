"""A stand-in for the engine: feeds token streams to a Decoder through Batches, in any chunks, over a paged cache."""

from typing import Any

import torch

from moesaic.core.batch import Batch
from moesaic.core.config import ModelConfig
from moesaic.layers.kv_cache import StateSpec
from moesaic.models.load import load_model

BLOCK_SIZE = 4
NUM_SLOTS = 16


def load(
    path: str,
    dtype: str = "float32",
    load_format: str = "auto",
    seed: int = 0,
    backend: str = "auto",
    **options: Any,
) -> Any:
    """The model in folder `path`, on the CPU: a Decoder, or what stands for it; `options` are ModelConfig's."""
    config = ModelConfig(
        path=str(path),
        name="tiny",
        dtype=dtype,
        max_model_len=512,
        load_format=load_format,
        seed=seed,
        moe_backend=backend,
        **options,
    )
    return load_model(config, "cpu", block_size=BLOCK_SIZE, progress=False)


class Driver:
    """Runs sequences on a Decoder. Blocks are handed out scattered, and unwritten slots hold NaN."""

    def __init__(self, model: Any, num_blocks: int = 64, block_size: int = BLOCK_SIZE) -> None:
        self.model = model
        self.block_size = block_size
        self.caches = [
            spec.allocate(NUM_SLOTS) if isinstance(spec, StateSpec) else spec.allocate(num_blocks, block_size, "cpu")
            for spec in model.cache_specs()
        ]
        for cache in self.caches:
            cache.fill_(float("nan"))
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))
        self.free: list[int] = order.tolist()
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.slots: dict[int, int] = {}  # of states; handed out from the last one on

    def step(self, tokens: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Advance sequences by their next tokens; returns the logits after each of these, `[n, vocab]`."""
        batch = self.batch(tokens)
        hidden = self.model(batch, self.caches)
        logits = self.model.logits(hidden[batch.logits_rows])
        return dict(zip(tokens, logits.split([len(t) for t in tokens.values()]), strict=True))

    def batch(self, tokens: dict[int, list[int]]) -> Batch:
        """The Batch that advances sequences by these tokens."""
        positions, slots, lens = [], [], []
        for seq, new in tokens.items():
            start = self.lengths.get(seq, 0)
            self.lengths[seq] = end = start + len(new)
            table = self.tables.setdefault(seq, [])
            while len(table) * self.block_size < end:
                table.append(self.free.pop())
            positions += range(start, end)
            slots += [table[p // self.block_size] * self.block_size + p % self.block_size for p in range(start, end)]
            lens.append(end)
        width = max(len(self.tables[seq]) for seq in tokens)
        tables = [self.tables[seq] + [0] * (width - len(self.tables[seq])) for seq in tokens]
        query_lens = [len(new) for new in tokens.values()]
        return Batch(
            token_ids=torch.tensor([t for new in tokens.values() for t in new]),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            query_start=torch.tensor([0, *query_lens]).cumsum(0),
            seq_lens=torch.tensor(lens),
            block_tables=torch.tensor(tables),
            table_rows=torch.arange(len(tables)),
            logits_rows=torch.arange(len(positions)),
            query_lens_host=query_lens,
            seq_lens_host=lens,
            table_rows_host=list(range(len(tables))),
            seq_ids=list(tokens),
            state_slots=torch.tensor([self.slots.setdefault(s, NUM_SLOTS - 1 - len(self.slots)) for s in tokens]),
        )

    def run(self, streams: dict[int, list[int]], chunks: list[int]) -> dict[int, torch.Tensor]:
        """Feed whole streams: each step advances every unfinished one by the next size of `chunks` (the last one
        repeats). Returns all logits of each, `[len, vocab]`."""
        logits: dict[int, list[torch.Tensor]] = {seq: [] for seq in streams}
        done = dict.fromkeys(streams, 0)
        turn = 0
        while pending := {seq: done[seq] for seq in streams if done[seq] < len(streams[seq])}:
            size = chunks[min(turn, len(chunks) - 1)]
            out = self.step({seq: streams[seq][at : at + size] for seq, at in pending.items()})
            for seq, rows in out.items():
                logits[seq].append(rows)
                done[seq] += len(rows)
            turn += 1
        return {seq: torch.cat(rows) for seq, rows in logits.items()}


def relative_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| over max |reference|."""
    return float((ours - reference).abs().max() / reference.abs().max())
