"""Attention whose experts own everything: queries, keys, values and outputs; or queries and keys alone, beside values
and an output projection that are common. Each (layer, expert) is a paged cache of its own, which holds only the tokens
that were routed to the expert.

A token attends, in each of its experts, to those tokens before it (itself included) that went to the same expert; what
its experts give is summed with the router's weights; a common output projection is given that sum. Rotary angles are
those of the tokens' places in their sequence.

A sequence has blocks only with the experts that its tokens were routed to, and as many as these tokens fill. All
experts, of all layers that share a `SharedPages`, draw them from one pool, and each sequence with an expert is to the
kernels a sequence of its own, so that one call attends for all of them. Which there are is known once a step's tokens
are routed: a step with such a layer is not recorded. What a sequence began on is not found again by others, so a model
with such layers caches no prefixes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.core.errors import ConfigError
from moesaic.kernels.reference_moe import combine
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.context import LinearMethod, context_of, current_construction, current_running
from moesaic.layers.expert_tables import ExpertTables, OutOfBlocksError, SharedPages
from moesaic.layers.kv_cache import KVCacheSpec
from moesaic.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from moesaic.layers.rope import shared_frequencies
from moesaic.models.spec import RopeSpec

__all__ = ["MoEPagedAttention", "OutOfBlocksError", "SharedPages"]


@dataclass
class Visit:
    """The tokens of one sequence that a step routed to one expert.

    Attributes:
        choices: `row * k + choice` of each, in the order of the sequence.
    """

    expert: int
    sequence: int
    choices: list[int]


class ExpertProjections(Layer):
    """One expert's weights, by the names `q` and `k`, and `v` and `o` where it owns these.

    Args:
        sizes: name -> outputs of its projections of the token.
    """

    def __init__(
        self, ctx: BuildContext, hidden_size: int, sizes: dict[str, int], bias: bool, output_bias: bool
    ) -> None:
        super().__init__()
        self.qkv = MergedColumnParallelLinear(hidden_size, sizes, bias, ctx=ctx)
        self.o = RowParallelLinear(sizes["q"], hidden_size, output_bias, ctx=ctx.under("o")) if "v" in sizes else None

    def named_views(self) -> NamedViews:
        for name, view in super().named_views():
            yield name.removeprefix("qkv."), view


class MoEPagedAttention(Layer):
    """See the file's head.

    Attributes:
        tables: which blocks each sequence has with each expert.

    Args:
        top_k: the most experts of a token, by which the engine sets memory aside; None for all of them.
        pages: shared with other layers, where these have the same heads; may also be set later, as an attribute, for
            it is made from `cache_spec`. The engine sets those of a hand-written model.
        scale: of the scores, before the softmax; None for `1 / sqrt(head_size)`.
        rope: None where positions do not show.
        bias, output_bias: of the projections to queries, keys and values, and from outputs, whoever owns them.
        owned: "qkvo", all that an expert can own; "qk", queries and keys alone.
        prefix, linear_method, ctx: as other layers take them.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        num_heads: int,
        head_size: int,
        num_kv_heads: int | None = None,
        *,
        top_k: int | None = None,
        pages: SharedPages | None = None,
        scale: float | None = None,
        rope: RopeSpec | None = None,
        bias: bool = False,
        output_bias: bool = False,
        owned: Literal["qkvo", "qk"] = "qkvo",
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ConfigError(f"{prefix}: {num_heads} heads of queries do not share {num_kv_heads} KV heads evenly")
        self.top_k = num_experts if top_k is None else top_k
        if not 1 <= self.top_k <= num_experts:
            raise ConfigError(f"{prefix}: top_k must be from 1 to {num_experts}, the number of experts, got {top_k}")
        if ctx is None:
            construction = current_construction()
            needs = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_size}
            construction.ask("attention", **needs)
        ctx = context_of(self, ctx, prefix, linear_method)
        self.name = prefix or ctx.prefix.rstrip(".")
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.scale = head_size**-0.5 if scale is None else scale
        sizes = {"q": num_heads * head_size, "k": num_kv_heads * head_size, "v": num_kv_heads * head_size}
        self.v = self.o = None
        if owned == "qk":
            self.v = ColumnParallelLinear(hidden_size, sizes.pop("v"), bias, ctx=ctx.under("v"))
            self.o = RowParallelLinear(sizes["q"], hidden_size, output_bias, ctx=ctx.under("o"))
        self.experts = nn.ModuleList(
            ExpertProjections(ctx.under(f"experts.{e}"), hidden_size, sizes, bias, output_bias)
            for e in range(num_experts)
        )
        self.cache_spec = KVCacheSpec(
            num_kv_heads, head_size, ctx.kv_dtype or ctx.dtype, tiled=ctx.backends["attention"] == "cpu"
        )
        self.pages = pages
        self.tables = ExpertTables(self.name)
        self.frequencies = None if rope is None else shared_frequencies(rope, rope.dim or head_size, ctx.device)
        self._interleaved = rope is not None and rope.interleaved
        self._rope_table, self._prepare_qkv = ctx.kernel("rope_table"), ctx.kernel("prepare_qkv")
        self._plan, self._attend = ctx.kernel("plan_attention"), ctx.kernel("paged_attention")

    def allocate(self, expert_idx: int, seq_len: int, seq_id: int = 0) -> list[int]:
        """Make room for `seq_len` tokens of a sequence in the cache of an expert; `forward` does it for its tokens.

        Returns:
            All blocks that the sequence has there, in order.

        Raises:
            ConfigError: there is no such expert.
            OutOfBlocksError: too few blocks are free; none was taken.
        """
        if not 0 <= expert_idx < len(self.experts):
            raise ConfigError(f"{self.name} has no expert {expert_idx}, but {len(self.experts)} of them")
        return self.tables.allocate(self._shared(), [(expert_idx, seq_len, seq_id)])[0]

    def free(self, seq_id: int) -> None:
        """Give back all blocks of a sequence that ended, or that starts anew: those that the engine hands to a model's
        `forget`. One that was never here has none."""
        if self.pages is not None:
            self.tables.free(self.pages, seq_id)

    def parameter_parts(self) -> dict[str, dict[str, Any]]:
        """Nothing: the projections say it themselves."""
        return {}

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor, batch: Batch | None = None) -> Tensor:
        """What each token's experts make of it, weighed and summed in the order of its choices.

        Args:
            hidden: `[T, H]`.
            ids: `[T, k]` integers, experts; a negative choice is left out, and no token names one twice.
            weights: `[T, k]` fp32.
            batch: whose tokens these are: sequences, lengths and positions; None for those of the step that runs.

        Returns:
            `[T, H]`.

        Raises:
            ValueError: a sequence does not go on where it stopped; or k is more than `top_k`.
            OutOfBlocksError: too few blocks are free for this step; nothing was taken or written.
        """
        if ids.shape[1] > self.top_k:
            raise ValueError(f"{self.name}: a token has {ids.shape[1]} experts, and top_k is {self.top_k}")
        batch = current_running().step.batch if batch is None else batch
        visits = self._visits(ids.tolist(), batch)
        wanted = [
            (v.expert, self.tables.held(v.sequence, v.expert).length + len(v.choices), v.sequence) for v in visits
        ]
        self.tables.allocate(self._shared(), wanted)
        choices = torch.tensor([c for visit in visits for c in visit.choices], dtype=torch.int64, device=hidden.device)
        num_tokens, k = ids.shape
        width = hidden.shape[1] if self.o is None else self.num_heads * self.head_size
        outputs = hidden.new_zeros(num_tokens * k, width)
        if visits:
            rows = choices.div(k, rounding_mode="floor")
            given = self._mixed(hidden, rows, visits, batch)
            if self.o is None:
                given = torch.cat([self.experts[e].o(given[begin:end]) for e, begin, end in _spans(visits)])
            outputs.index_copy_(0, choices, given)
        self.tables.computed.update(zip(batch.seq_ids, batch.seq_lens_host, strict=True))
        for visit in visits:
            self.tables.held(visit.sequence, visit.expert).length += len(visit.choices)
        total = combine(outputs.view(num_tokens, k, -1), weights)
        return total if self.o is None else self.o(total)

    def _mixed(self, hidden: Tensor, rows: Tensor, visits: list[Visit], batch: Batch) -> Tensor:
        """What the heads give, `[choices, heads * D]`, visit after visit."""
        cache = self._shared().cache
        inputs = hidden.index_select(0, rows)
        qkv = torch.cat([self.experts[e].qkv(inputs[begin:end]) for e, begin, end in _spans(visits)])
        if self.v is not None:
            qkv = torch.cat([qkv, self.v(hidden).index_select(0, rows)], 1)
        table = None
        if self.frequencies is not None:
            table = self._rope_table(batch.positions.index_select(0, rows), *self.frequencies)
        inner = self._batch(visits, rows, batch)
        heads = self.num_heads, self.num_kv_heads
        query = self._prepare_qkv(qkv, *heads, table, inner.slots, cache, interleaved=self._interleaved)
        mixed: Tensor = self._attend(query, cache, self._plan(inner, cache, None), self.scale)
        return mixed.flatten(1)

    def _visits(self, ids: list[list[int]], batch: Batch) -> list[Visit]:
        """Who goes where, expert by expert; of an expert, sequence by sequence. Raises ValueError."""
        found: dict[tuple[int, int], Visit] = {}
        first = 0
        for s, (seq, count, length) in enumerate(
            zip(batch.seq_ids, batch.query_lens_host, batch.seq_lens_host, strict=True)
        ):
            done = self.tables.computed.get(seq, 0)
            if length - count != done:
                raise ValueError(
                    f"{self.name}: sequence {seq} goes on at token {length - count}, but {done} of its tokens are "
                    "here; free it before it starts anew"
                )
            for choice, expert in enumerate(chain.from_iterable(ids[first : first + count]), first * len(ids[first])):
                if expert >= len(self.experts):
                    raise ValueError(f"{self.name}: a token is routed to expert {expert} of {len(self.experts)}")
                if expert >= 0:
                    found.setdefault((expert, s), Visit(expert, seq, [])).choices.append(choice)
            first += count
        return [found[key] for key in sorted(found)]

    def _batch(self, visits: list[Visit], rows: Tensor, batch: Batch) -> Batch:
        """Each visit as a sequence of its own, whose tokens are those that its expert has seen."""
        size = self._shared().cache.block_size
        held = [self.tables.held(v.sequence, v.expert) for v in visits]
        counts = [len(v.choices) for v in visits]
        lengths = [h.length + n for h, n in zip(held, counts, strict=True)]
        places = [(h, at) for h, n in zip(held, counts, strict=True) for at in range(h.length, h.length + n)]
        width = max(len(h.blocks) for h in held)

        def ints(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=rows.device)

        return Batch(
            token_ids=batch.token_ids.index_select(0, rows),
            positions=ints([at for _, at in places]),
            slots=ints([h.blocks[at // size] * size + at % size for h, at in places]),
            query_start=ints([0, *counts]).cumsum(0),
            seq_lens=ints(lengths),
            block_tables=ints([h.blocks + [0] * (width - len(h.blocks)) for h in held]),
            table_rows=torch.arange(len(visits), device=rows.device),
            logits_rows=rows[:0],
            query_lens_host=counts,
            seq_lens_host=lengths,
            table_rows_host=list(range(len(visits))),
            seq_ids=[v.sequence for v in visits],
        )

    def _shared(self) -> SharedPages:
        if self.pages is None:
            raise ConfigError(f"{self.name} has no pages: set them to SharedPages(blocks, cache_spec.allocate(...))")
        return self.pages


def _spans(visits: list[Visit]) -> Iterable[tuple[int, int, int]]:
    """(expert, first, end) of the choices of each expert."""
    end = 0
    for expert, group in groupby(visits, key=lambda visit: visit.expert):
        begin, end = end, end + sum(len(visit.choices) for visit in group)
        yield expert, begin, end
