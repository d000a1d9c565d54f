"""Multi-head latent attention over a paged cache of latents, as its spec says."""

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from moesaic.kernels.cpu.latent import PackedHeads
from moesaic.kernels.cpu.packed import Split
from moesaic.kernels.reference_indexer import Selection
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.kv_cache import KVCache, KVCacheSpec, TiledCache
from moesaic.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from moesaic.layers.norm import Norm
from moesaic.layers.rope import shared_frequencies
from moesaic.layers.step import Step
from moesaic.models.spec import IndexerSpec, LatentAttentionSpec, NormSpec


class LatentAttention(Layer):
    """project queries and latent → absorb queries → norm, rotate, write to the cache → attend → expand → project.

    Queries are absorbed however many there are, so that no chunking changes a bit (`kernels.reference_latent`).
    """

    def __init__(self, ctx: BuildContext, spec: LatentAttentionSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        inner = NormSpec(eps=spec.norm_eps)
        if spec.query_rank is None:
            self.q = ColumnParallelLinear(hidden_size, spec.q_size, ctx=ctx.under("q"))
        else:
            self.q_a = ReplicatedLinear(hidden_size, spec.query_rank, bias=spec.bias, ctx=ctx.under("q_a"))
            self.q_a_norm = Norm(ctx, inner, spec.query_rank)
            self.q_b = ColumnParallelLinear(spec.query_rank, spec.q_size, ctx=ctx.under("q_b"))
        self.kv_a = ReplicatedLinear(hidden_size, spec.cached_dim, bias=spec.bias, ctx=ctx.under("kv_a"))
        self.kv_a_norm = Norm(ctx, inner, spec.latent_dim)
        self.kv_b = HeadMatrices(ctx.under("kv_b"), spec.num_heads, spec.key_dim, spec.value_dim, spec.latent_dim)
        self.o = RowParallelLinear(
            spec.num_heads * spec.value_dim, hidden_size, bias=spec.output_bias, ctx=ctx.under("o")
        )
        cache = KVCacheSpec(
            1,
            spec.cached_dim,
            ctx.kv_dtype or ctx.dtype,
            value_dim=spec.latent_dim,
            latent=True,
            by_token=spec.indexer is not None,
            tiled=ctx.backends["attention"] == "cpu",
        )
        self.cache_specs = [cache]
        self.indexer: Indexer | None = None
        if spec.indexer is not None and spec.indexer.source == "own":
            self.indexer = Indexer(ctx.under("indexer"), spec.indexer, hidden_size, spec.query_rank or 0)
            self.cache_specs.append(self.indexer.cache_spec)
        if spec.rope is not None:
            self.inverse_frequencies, self.rope_factor = shared_frequencies(spec.rope, spec.rope_dim, ctx.device)
        self._rope_table = ctx.kernel("rope_table")
        self._temperature, self._apply_gate = ctx.kernel("query_temperature"), ctx.kernel("apply_gate")
        self._head_linear = ctx.kernel("head_linear")
        self._prepare_latent = ctx.kernel("prepare_latent")
        self._plan = ctx.kernel("plan_attention")
        self._attend, self._attend_selected = ctx.kernel("paged_attention"), ctx.kernel("selected_attention")

    def forward(
        self, hidden: Tensor, step: Step, cache: KVCache | TiledCache, index: KVCache | TiledCache | None = None
    ) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the step's latents go into `cache`, its indexer's keys into `index`."""
        spec, table = self.spec, self._table(step)
        inner = hidden if spec.query_rank is None else self.q_a_norm(self.q_a(hidden))
        heads = (self.q if spec.query_rank is None else self.q_b)(inner)
        heads = heads.view(-1, spec.num_heads, spec.key_dim + spec.rope_dim)
        query = self._prepare_latent(
            self._head_linear(heads[..., : spec.key_dim], self.kv_b.absorbing, spec.rope_dim),
            heads[..., spec.key_dim :],
            self.kv_a(hidden),
            self.kv_a_norm.weight,
            table,
            step.batch.slots,
            cache,
            eps=spec.norm_eps,
            interleaved=spec.rope is not None and spec.rope.interleaved,
        )
        if spec.temperature is not None:
            factors = step.temperature(self._temperature, spec.temperature)
            query = self._apply_gate(query.flatten(1), factors, "identity").view(query.shape)
        if self.indexer is not None:
            assert index is not None
            step.selection = self.indexer(hidden, inner, table, step, index)
        mixed = self._attention(query, cache, step)
        return self.o(self._head_linear(mixed, self.kv_b.expanding).view(-1, spec.num_heads * spec.value_dim))

    def _attention(self, query: Tensor, cache: KVCache | TiledCache, step: Step) -> Tensor:
        """`[T, heads, L + R]` -> `[T, heads, L]`."""
        mixed: Tensor
        if self.spec.indexer is None:
            mixed = self._attend(query, cache, step.attention_plan(self._plan, cache, None), self.spec.scale)
        else:
            mixed = self._attend_selected(query, cache, step.batch, step.selection, self.spec.scale)
        return mixed

    def _table(self, step: Step) -> Tensor | None:
        """The angles of the step's positions."""
        if self.spec.rope is None:
            return None
        table: Tensor = step.rope(self._rope_table, self.inverse_frequencies, self.rope_factor)
        return table

    def loaded(self) -> None:
        if self.spec.latent_scale != 1.0:
            self.kv_a_norm.weight.data.mul_(self.spec.latent_scale)


class Indexer(Layer):
    """project to queries, a key and heads' weights → norm the key → rotate → write to a cache of its own → choose."""

    def __init__(self, ctx: BuildContext, spec: IndexerSpec, hidden_size: int, query_rank: int) -> None:
        super().__init__()
        self.spec = spec
        self.q = ReplicatedLinear(query_rank, spec.num_heads * spec.head_dim, ctx=ctx.under("q"))
        self.k = ReplicatedLinear(hidden_size, spec.head_dim, ctx=ctx.under("k"))
        self.k_norm = Norm(ctx, NormSpec(eps=spec.norm_eps, kind="layer", bias=True), spec.head_dim)
        self.weights = ReplicatedLinear(hidden_size, spec.num_heads, ctx=ctx.under("weights"))
        tiled = ctx.backends["attention"] == "cpu"
        self.cache_spec = KVCacheSpec(
            1, spec.head_dim, ctx.kv_dtype or ctx.dtype, value_dim=0, latent=True, tiled=tiled
        )
        self._prepare, self._select = ctx.kernel("prepare_index"), ctx.kernel("select_positions")

    def forward(
        self, hidden: Tensor, inner: Tensor, table: Tensor | None, step: Step, cache: KVCache | TiledCache
    ) -> Selection:
        """The positions that each token sees, from `[T, hidden]` and `[T, query_rank]`; writes keys into `cache`.

        Scores are not scaled, for a positive factor changes no choice.
        """
        spec = self.spec
        query = self._prepare(
            self.q(inner).view(-1, spec.num_heads, spec.head_dim),
            self.k_norm(self.k(hidden)),
            table,
            step.batch.slots,
            cache,
            interleaved=spec.interleaved,
        )
        selection: Selection = self._select(query, self.weights(hidden), cache, step.batch, spec.top_k)
        return selection


class HeadMatrices(Layer):
    """What makes each head's key and value from a latent `[L]`, as attention on latents uses it. Of each head a
    checkpoint has one matrix `[K + V, L]`, canonical name `{head}.weight`.

    Attributes:
        weight: `[H, K + V, L]`, where plain weights are computed with.
    """

    def __init__(self, ctx: BuildContext, num_heads: int, key_dim: int, value_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim = num_heads, key_dim
        self.weight: nn.Parameter | None = None
        if ctx.backends["matrices"] == "cpu":
            names = [f"{head}.weight" for head in range(num_heads)]
            self.keys = [ctx.matrix(name, latent_dim, key_dim) for name in names]
            self.values = [ctx.matrix(name, value_dim, latent_dim) for name in names]
        else:
            self.weight = ctx.stacked(num_heads, key_dim + value_dim, latent_dim)

    @cached_property
    def absorbing(self) -> Any:
        """Of queries: H times `[L, K]`."""
        return PackedHeads(self.keys) if self.weight is None else self.weight[:, : self.key_dim].transpose(1, 2)

    @cached_property
    def expanding(self) -> Any:
        """Of what attention mixes: H times `[V, L]`."""
        return PackedHeads(self.values) if self.weight is None else self.weight[:, self.key_dim :]

    def own_weights(self) -> list[Any]:
        return [*self.keys, *self.values] if self.weight is None else [self.weight]

    def named_views(self) -> NamedViews:
        for head in range(self.num_heads):
            if self.weight is None:
                yield f"{head}.weight", Split(self.keys[head].sink(), self.values[head].sink())
            else:
                yield f"{head}.weight", self.weight.data[head]
