"""Mamba in the place of attention (Gu and Dao 2023), with norms of steps, B and C (Jamba, Lieber et al. 2024)."""

from torch import Tensor

from moesaic.kernels.state_cache import in_blocks, matrix_state
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.conv import CausalConv
from moesaic.layers.kv_cache import StateCache, StateSpec
from moesaic.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from moesaic.layers.step import Step
from moesaic.models.spec import MambaSpec, NormSpec


class Mamba(Layer):
    """project x and gate → convolve x → project steps, B, C of it, and norm them → scan, gate → project.

    Attributes:
        rate: how fast each number of a channel's state fades, `[state_size, channels]` in blocks of columns; until it
            is loaded, its logarithm, `[channels, state_size]`.
    """

    def __init__(self, ctx: BuildContext, spec: MambaSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = norm.eps
        inner = spec.inner_size
        self.inputs = MergedColumnParallelLinear(hidden_size, {"x": inner, "gate": inner}, bias=spec.bias, ctx=ctx)
        self.conv = CausalConv(ctx, inner, spec.conv_width, spec.conv_bias)
        sizes = {"step_down": spec.step_rank, "step_b": spec.state_size, "step_c": spec.state_size}
        self.controls = MergedColumnParallelLinear(inner, sizes, ctx=ctx)
        self.step_norm, self.b_norm, self.c_norm = (ctx.parameter(size) for size in sizes.values())
        self.step_up = ColumnParallelLinear(spec.step_rank, inner, ctx=ctx.under("step_up"))
        self.step_bias, self.skip = ctx.exact(inner), ctx.exact(inner)
        self.rate = ctx.exact(inner, spec.state_size)
        self.o = RowParallelLinear(inner, hidden_size, bias=spec.bias, ctx=ctx.under("o"))
        self.cache_specs = [StateSpec({"conv": self.conv.state_shape, "scan": matrix_state(1, spec.state_size, inner)})]
        self._selective_scan, self._norm_heads = ctx.kernel("selective_scan"), ctx.kernel("norm_heads")

    def forward(self, hidden: Tensor, step: Step, cache: StateCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the sequences' states in `cache` are brought forward."""
        spec, batch = self.spec, step.batch
        inputs = self.inputs(hidden)
        x = self.conv(inputs[:, : spec.inner_size], cache.parts["conv"], batch)
        parts = self.controls(x).split([spec.step_rank, spec.state_size, spec.state_size], 1)
        norms = self.step_norm, self.b_norm, self.c_norm
        down, b, c = (self._norm_heads(part, w, self.norm_eps) for part, w in zip(parts, norms, strict=True))
        read = self._selective_scan(
            x,
            self.step_up(down),
            b,
            c,
            inputs[:, spec.inner_size :],
            self.rate,
            self.step_bias,
            self.skip,
            cache.parts["scan"],
            batch,
        )
        return self.o(read)

    def loaded(self) -> None:
        self.rate.data = in_blocks(self.rate.data.exp_().T)

    def named_views(self) -> NamedViews:
        """Projections by their own names: that some are one product is no one else's business."""
        for name, view in super().named_views():
            yield name.removeprefix("inputs.").removeprefix("controls."), view
        for name in ("rate", "step_bias", "skip"):
            yield name, getattr(self, name).data
        for name in ("step_norm", "b_norm", "c_norm"):
            yield f"{name}.weight", getattr(self, name).data
