"""Linear attention in the place of attention (lightning attention, Qin et al. 2024; MiniMax-01, 2025)."""

import torch
from torch import Tensor

from moesaic.kernels.state_cache import matrix_state
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.kv_cache import StateCache, StateSpec
from moesaic.layers.linear import ActivatedLinear, ColumnParallelLinear, RowParallelLinear
from moesaic.layers.step import Step
from moesaic.models.spec import LinearAttentionSpec, NormSpec


class LinearAttention(Layer):
    """project q, k, v, through silu → take in, read → norm, then gate → project."""

    def __init__(self, ctx: BuildContext, spec: LinearAttentionSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = spec.norm_eps
        self.qkv = ActivatedLinear(hidden_size, {"q": spec.size, "k": spec.size, "v": spec.size}, "silu", ctx=ctx)
        self.gate = ColumnParallelLinear(hidden_size, spec.size, ctx=ctx.under("gate"))
        self.norm_weight = ctx.parameter(spec.size)
        self.o = RowParallelLinear(spec.size, hidden_size, ctx=ctx.under("o"))
        self.decays = torch.tensor(spec.decays, dtype=torch.float32, device=ctx.device)
        self.cache_specs = [StateSpec({"scan": matrix_state(spec.num_heads, spec.head_dim, spec.head_dim)})]
        self._linear_attention, self._gated_norm = ctx.kernel("linear_attention"), ctx.kernel("gated_norm")

    def forward(self, hidden: Tensor, step: Step, cache: StateCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the sequences' states in `cache` are brought forward."""
        spec = self.spec
        query, key, value = self.qkv(hidden).view(-1, 3, spec.num_heads, spec.head_dim).unbind(1)
        read = self._linear_attention(query, key, value, self.decays, cache.parts["scan"], step.batch)
        gate = self.gate(hidden)
        return self.o(self._gated_norm(read.flatten(1), gate, self.norm_weight, self.norm_eps, spec.size, "sigmoid"))

    def named_views(self) -> NamedViews:
        """Queries, keys and values by their own names: that they are one product is no one else's business."""
        for name, view in super().named_views():
            yield name.removeprefix("qkv."), view
        yield "norm.weight", self.norm_weight.data
