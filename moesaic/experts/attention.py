"""Attention whose experts a router chooses. Over keys and values common to all: mixture of attention heads (Zhang et
al. 2022, "Mixture of Attention Heads"; JetMoE). Over each expert's own: `layers.moe_paged_attention`."""

from torch import Tensor

from moesaic.experts.routing import Router
from moesaic.experts.store import ExpertPages
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.bias import Bias
from moesaic.layers.kv_cache import CacheSpec, KVCache, KVCacheSpec, TiledCache
from moesaic.layers.linear import MergedColumnParallelLinear
from moesaic.layers.moe_paged_attention import MoEPagedAttention
from moesaic.layers.rope import shared_frequencies
from moesaic.layers.step import Step
from moesaic.models.spec import ExpertAttentionSpec, ExpertPagedAttentionSpec, NormSpec


class ExpertAttention(Layer):
    """route → each choice's queries → rotate, write keys and values → attend → each choice's output, weighed.

    An expert's page holds its query projection where a feed-forward expert has `up`, and its output projection as
    `down`. The queries of a token's k choices that share a key are neighbours, so that attention sees k times as many
    query heads as key heads and reads the cache once.
    """

    def __init__(self, ctx: BuildContext, spec: ExpertAttentionSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = Router(hidden_size, spec.num_experts, spec.router, ctx=ctx.under("router"))
        self.experts = ExpertPages(ctx.under("experts"), spec.projections, hidden_size)
        self.kv = MergedColumnParallelLinear(hidden_size, {"k": spec.kv_size, "v": spec.kv_size}, ctx=ctx)
        self.output_bias = Bias(ctx, hidden_size) if spec.output_bias else None
        tiled = ctx.backends["attention"] == "cpu"
        self.cache_specs = [KVCacheSpec(spec.num_kv_heads, spec.head_dim, ctx.kv_dtype or ctx.dtype, tiled=tiled)]
        self._spread, self._gather = ctx.kernel("spread_linear"), ctx.kernel("gather_linear")
        self._rope_table, self._prepare_qkv = ctx.kernel("rope_table"), ctx.kernel("prepare_qkv")
        self._plan, self._attend = ctx.kernel("plan_attention"), ctx.kernel("paged_attention")
        if spec.rope is not None:
            self.frequencies = shared_frequencies(spec.rope, spec.rope.dim or spec.head_dim, ctx.device)

    def forward(self, hidden: Tensor, step: Step, cache: KVCache | TiledCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; writes the step's keys and values into `cache`."""
        spec, pages = self.spec, self.experts.pages
        routing = self.router(hidden)
        queries = self._spread(hidden, routing.ids, pages, spec.head_dim)  # [T, kv_heads, k, head_dim]
        kv = self.kv(hidden)
        query = self._prepare_qkv(
            (queries.flatten(1), kv[:, : spec.kv_size], kv[:, spec.kv_size :]),
            spec.num_heads,
            spec.num_kv_heads,
            step.rope(self._rope_table, *self.frequencies) if spec.rope is not None else None,
            step.batch.slots,
            cache,
            interleaved=spec.rope is not None and spec.rope.interleaved,
        )
        mixed = self._attend(query, cache, step.attention_plan(self._plan, cache, None), spec.scale)
        out: Tensor = self._gather(mixed.view(queries.shape), routing.ids, routing.weights, pages)
        return out if self.output_bias is None else self.output_bias(out)

    def named_views(self) -> NamedViews:
        """Keys and values by their own names."""
        for name, view in super().named_views():
            yield name.removeprefix("kv."), view


class ExpertPagedAttention(Layer):
    """route → attend with each choice's own queries and keys, among the tokens that went there → weigh and sum.

    Its keys and values are in the pool of all such layers of the model (`layers.expert_pools`), so it lists no cache.
    """

    def __init__(self, ctx: BuildContext, spec: ExpertPagedAttentionSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.router = Router(hidden_size, spec.num_experts, spec.router, ctx=ctx.under("router"))
        self.attention = MoEPagedAttention(
            hidden_size,
            spec.num_experts,
            spec.num_heads,
            spec.head_dim,
            spec.num_kv_heads,
            top_k=spec.router.top_k,
            scale=spec.scale,
            rope=spec.rope,
            bias=spec.qkv_bias,
            output_bias=spec.output_bias,
            owned=spec.owned,
            ctx=ctx,
        )
        self.cache_specs: list[CacheSpec] = []

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`."""
        routing = self.router(hidden)
        out: Tensor = self.attention(hidden, routing.ids, routing.weights, step.batch)
        return out

    def named_views(self) -> NamedViews:
        """Experts, and what is common to them, beside the router."""
        for name, view in super().named_views():
            yield name.removeprefix("attention."), view
