"""Grouped-query attention over a paged cache, as its spec says."""

import torch
from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.kv_cache import KVCache, KVCacheSpec, TiledCache
from moesaic.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from moesaic.layers.norm import Norm
from moesaic.layers.rope import shared_frequencies
from moesaic.layers.step import Step
from moesaic.models.spec import AttentionSpec, NormSpec


class GroupedQueryAttention(Layer):
    """project q, k, v → norm → clip → rotate → write to the cache → attend → gate → project.

    Args:
        norm: of queries and keys, where the spec has them normed.
    """

    def __init__(self, ctx: BuildContext, spec: AttentionSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = norm.eps
        heads = spec.num_heads, spec.num_kv_heads
        if spec.values == "projected":
            self.qkv: MergedColumnParallelLinear = QKVParallelLinear(
                hidden_size, spec.head_dim, *heads, bias=spec.qkv_bias, v_head_size=spec.value_dim, ctx=ctx
            )
        else:
            sizes = {"q": spec.q_size, "k": spec.kv_size}
            self.qkv = MergedColumnParallelLinear(hidden_size, sizes, bias=spec.qkv_bias, ctx=ctx)
        self.o = RowParallelLinear(spec.mixed_size, hidden_size, bias=spec.output_bias, ctx=ctx.under("o"))
        self.gate = self.gate_bias = None
        if spec.output_gate is not None:
            bias = spec.output_gate.bias or spec.output_gate.head_bias
            self.gate_bias = ctx.parameter(spec.num_heads) if spec.output_gate.head_bias else None
            self.gate = ColumnParallelLinear(hidden_size, spec.gate_size, bias=bias, ctx=ctx.under("gate"))
        self._unit = torch.ones(spec.head_dim, device=ctx.device) if spec.qk_norm == "unit" else None
        self._value_unit = torch.ones(spec.value_dim or spec.head_dim, device=ctx.device)
        self.q_norm = self.k_norm = None
        if spec.qk_norm in ("head", "full"):
            per_head = spec.qk_norm == "head"
            self.q_norm = Norm(ctx, norm, spec.head_dim if per_head else spec.q_size)
            self.k_norm = Norm(ctx, norm, spec.head_dim if per_head else spec.kv_size)
        self.sinks = ctx.parameter(spec.num_heads) if spec.sinks else None
        self.cache_specs = [
            KVCacheSpec(
                spec.num_kv_heads,
                spec.head_dim,
                ctx.kv_dtype or ctx.dtype,
                value_dim=spec.value_dim,
                tiled=ctx.backends["attention"] == "cpu",
            )
        ]
        if spec.rope is not None:
            dim = spec.rope.dim or spec.head_dim
            self.inverse_frequencies, self.rope_factor = shared_frequencies(spec.rope, dim, ctx.device)
        self._rope_table = ctx.kernel("rope_table")
        self._temperature, self._apply_gate = ctx.kernel("query_temperature"), ctx.kernel("apply_gate")
        self._prepare_qkv, self._norm_heads = ctx.kernel("prepare_qkv"), ctx.kernel("norm_heads")
        self._plan = ctx.kernel("plan_attention")
        self._attend = ctx.kernel("paged_attention")

    def forward(self, hidden: Tensor, step: Step, cache: KVCache | TiledCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; writes the step's keys and values into `cache`."""
        spec = self.spec
        query = self._prepare_qkv(
            self._parts(self.qkv(hidden)),
            spec.num_heads,
            spec.num_kv_heads,
            self._table(step),
            step.batch.slots,
            cache,
            q_norm=self._norm_weight(self.q_norm),
            k_norm=self._norm_weight(self.k_norm),
            eps=self.norm_eps,
            clip=spec.clip_qkv,
            interleaved=spec.rope is not None and spec.rope.interleaved,
            norm_last=spec.qk_norm_last,
        )
        if spec.temperature is not None:
            factors = step.temperature(self._temperature, spec.temperature)
            query = self._apply_gate(query.flatten(1), factors, "identity").view(query.shape)
        plan = step.attention_plan(self._plan, cache, spec.window, spec.window_kind)
        mixed = self._attend(query, cache, plan, spec.scale, softcap=spec.softcap, sinks=self.sinks)
        mixed = mixed.view(-1, spec.mixed_size)
        if self.gate is not None and spec.output_gate is not None:
            mixed = self._apply_gate(mixed, self.gate(hidden), spec.output_gate.function)
        return self.o(mixed, spec.value_scale)

    def _parts(self, qkv: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as what follows takes them: apart, where values are not what was projected."""
        spec = self.spec
        if spec.values == "projected" and not spec.value_norm:
            return qkv
        key = qkv[:, spec.q_size : spec.q_size + spec.kv_size]
        value = key if spec.values == "keys" else qkv[:, spec.q_size + spec.kv_size :]
        if spec.value_norm:
            heads = value.unflatten(1, (spec.num_kv_heads, -1))
            value = self._norm_heads(heads, self._value_unit, self.norm_eps).flatten(1)
        return qkv[:, : spec.q_size], key, value

    def _norm_weight(self, norm: Norm | None) -> Tensor | None:
        """What queries or keys are multiplied by once they are normed; None where they are not."""
        if self.spec.qk_norm is None:
            return None
        return self._unit if norm is None else norm.weight

    def _table(self, step: Step) -> Tensor | None:
        """The angles of the step's positions."""
        if self.spec.rope is None:
            return None
        table: Tensor = step.rope(self._rope_table, self.inverse_frequencies, self.rope_factor)
        return table

    def named_views(self) -> NamedViews:
        """Queries, keys and values by their own names: that they are one product is no one else's business."""
        for name, view in super().named_views():
            if name != "gate.bias" or self.gate_bias is None:
                yield name.removeprefix("qkv."), view
        if self.gate_bias is not None:
            yield "gate.head_bias", self.gate_bias.data
        if self.sinks is not None:
            yield "sinks", self.sinks.data

    def loaded(self) -> None:
        if self.gate is not None and self.gate_bias is not None:
            each = self.gate_bias.data.repeat_interleave(self.spec.gate_size // self.spec.num_heads)
            self.gate.bias.data.copy_(each)
