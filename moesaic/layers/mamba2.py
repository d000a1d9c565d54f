"""Mamba 2 in the place of attention (Dao and Gu 2024)."""

from torch import Tensor

from moesaic.kernels.state_cache import matrix_state
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.conv import CausalConv
from moesaic.layers.kv_cache import StateCache, StateSpec
from moesaic.layers.linear import MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from moesaic.layers.step import Step
from moesaic.models.spec import Mamba2Spec, NormSpec


class Mamba2(Layer):
    """project gate, x, B, C and steps → convolve x, B, C → scan → gate, then norm by group → project.

    Attributes:
        rate: how fast heads forget, `[heads]`; until it is loaded, its logarithm.
    """

    def __init__(self, ctx: BuildContext, spec: Mamba2Spec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = norm.eps
        mixed = {"x": spec.inner_size, "b": spec.group_size, "c": spec.group_size}
        self.inputs = MergedColumnParallelLinear(
            hidden_size, {"gate": spec.inner_size} | mixed, bias=spec.bias, ctx=ctx
        )
        self.step = ReplicatedLinear(hidden_size, spec.num_heads, bias=spec.bias, ctx=ctx.under("step"))
        self.conv = CausalConv(ctx, sum(mixed.values()), spec.conv_width, spec.conv_bias)
        self.rate, self.step_bias, self.skip = (ctx.exact(spec.num_heads) for _ in range(3))
        self.norm_weight = ctx.parameter(spec.inner_size)
        self.o = RowParallelLinear(spec.inner_size, hidden_size, bias=spec.bias, ctx=ctx.under("o"))
        matrices = matrix_state(spec.num_heads, spec.state_size, spec.head_dim)
        self.cache_specs = [StateSpec({"conv": self.conv.state_shape, "scan": matrices})]
        self._ssd_scan, self._gated_norm = ctx.kernel("ssd_scan"), ctx.kernel("gated_norm")

    def forward(self, hidden: Tensor, step: Step, cache: StateCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the sequences' states in `cache` are brought forward."""
        spec, batch = self.spec, step.batch
        inputs = self.inputs(hidden)
        mixed = self.conv(inputs[:, spec.inner_size :], cache.parts["conv"], batch)
        x, b, c = mixed.split([spec.inner_size, spec.group_size, spec.group_size], 1)
        read = self._ssd_scan(
            x.unflatten(1, (-1, spec.head_dim)),
            b.unflatten(1, (-1, spec.state_size)),
            c.unflatten(1, (-1, spec.state_size)),
            self.step(hidden).unsqueeze(2),
            self.rate,
            self.step_bias,
            self.skip,
            cache.parts["scan"],
            batch,
            spec.step_limits,
        )
        gate, group = inputs[:, : spec.inner_size], spec.inner_size // spec.num_groups
        return self.o(self._gated_norm(read.flatten(1), gate, self.norm_weight, self.norm_eps, group, gate_first=True))

    def loaded(self) -> None:
        self.rate.data.exp_()

    def named_views(self) -> NamedViews:
        """Projections by their own names: that some are one product is no one else's business."""
        for name, view in super().named_views():
            yield name.removeprefix("inputs."), view
        for name in ("rate", "step_bias", "skip"):
            yield name, getattr(self, name).data
        yield "norm.weight", self.norm_weight.data
