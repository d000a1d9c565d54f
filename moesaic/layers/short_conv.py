"""A gated short convolution in the place of attention (LFM2, Liquid AI 2025)."""

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.conv import CausalConv
from moesaic.layers.kv_cache import StateCache, StateSpec
from moesaic.layers.linear import MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from moesaic.layers.step import Step
from moesaic.models.spec import NormSpec, ShortConvSpec


class ShortConv(Layer):
    """project b, c, x → b * x → convolve → times c → project."""

    def __init__(self, ctx: BuildContext, spec: ShortConvSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.x = ReplicatedLinear(hidden_size, hidden_size, bias=spec.bias, ctx=ctx.under("x"))
        self.gates = MergedColumnParallelLinear(
            hidden_size, {"b": hidden_size, "c": hidden_size}, bias=spec.bias, ctx=ctx
        )
        self.conv = CausalConv(ctx, hidden_size, spec.width, spec.bias, silu=False)
        self.o = RowParallelLinear(hidden_size, hidden_size, bias=spec.bias, ctx=ctx.under("o"))
        self.cache_specs = [StateSpec({"conv": self.conv.state_shape})]
        self._apply_gate = ctx.kernel("apply_gate")

    def forward(self, hidden: Tensor, step: Step, cache: StateCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the last inputs of the convolution are written into `cache`."""
        gates = self.gates(hidden)
        b, c = gates[:, : self.hidden_size], gates[:, self.hidden_size :]
        mixed = self.conv(self._apply_gate(self.x(hidden), b, "identity"), cache.parts["conv"], step.batch)
        return self.o(self._apply_gate(mixed, c, "identity"))

    def named_views(self) -> NamedViews:
        """The gates by their own names: that they are one product is no one else's business."""
        for name, view in super().named_views():
            yield name.removeprefix("gates."), view
