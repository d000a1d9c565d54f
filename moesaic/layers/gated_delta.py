"""The gated delta rule in the place of attention (Gated DeltaNet, Yang et al. 2024; Kimi Delta Attention, 2025)."""

from torch import Tensor

from moesaic.kernels.state_cache import matrix_state
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.conv import CausalConv
from moesaic.layers.kv_cache import StateCache, StateSpec
from moesaic.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from moesaic.layers.step import Step
from moesaic.models.spec import GatedDeltaSpec, NormSpec


class GatedDelta(Layer):
    """project q, k, v → convolve → the gated delta rule → norm, then gate → project.

    Attributes:
        rate: how fast heads forget, `[heads]`; until it is loaded, its logarithm.
    """

    def __init__(self, ctx: BuildContext, spec: GatedDeltaSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = norm.eps
        mixed = {"q": spec.key_size, "k": spec.key_size, "v": spec.value_size}
        own_gate = {"gate": spec.value_size} if spec.rank is None else {}
        self.inputs = MergedColumnParallelLinear(hidden_size, mixed | own_gate, ctx=ctx)
        self.conv = CausalConv(ctx, mixed, spec.conv_width, bias=False)
        own_decay = {"decay": spec.num_decays} if spec.rank is None else {}
        self.controls = MergedColumnParallelLinear(hidden_size, {"beta": spec.num_heads} | own_decay, ctx=ctx)
        if spec.rank is not None:
            self.decay = LowRank(ctx.under("decay"), hidden_size, spec.rank, spec.num_decays)
            self.gate = LowRank(ctx.under("gate"), hidden_size, spec.rank, spec.value_size)
        self.rate = ctx.exact(spec.num_heads)
        self.decay_bias = ctx.exact(spec.num_decays)
        self.norm_weight = ctx.parameter(spec.value_dim)
        self.o = RowParallelLinear(spec.value_size, hidden_size, ctx=ctx.under("o"))
        matrices = matrix_state(spec.num_heads, spec.key_dim, spec.value_dim)
        self.cache_specs = [StateSpec({"conv": self.conv.state_shape, "delta": matrices})]
        self._gated_delta, self._gated_norm = ctx.kernel("gated_delta"), ctx.kernel("gated_norm")

    def forward(self, hidden: Tensor, step: Step, cache: StateCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`; the sequences' states in `cache` are brought forward."""
        spec, batch = self.spec, step.batch
        inputs, controls = self.inputs(hidden), self.controls(hidden)
        mixed = self.conv(inputs[:, : 2 * spec.key_size + spec.value_size], cache.parts["conv"], batch)
        query, key, value = mixed.split([spec.key_size, spec.key_size, spec.value_size], 1)
        if spec.rank is None:
            decay, gate = controls[:, spec.num_heads :], inputs[:, mixed.shape[1] :]
        else:
            decay, gate = self.decay(hidden), self.gate(hidden)
        read = self._gated_delta(
            query.unflatten(1, (-1, spec.key_dim)),
            key.unflatten(1, (-1, spec.key_dim)),
            value.unflatten(1, (-1, spec.value_dim)),
            decay.unflatten(1, (spec.num_heads, -1)),
            controls[:, : spec.num_heads].unsqueeze(2),
            self.rate,
            self.decay_bias,
            cache.parts["delta"],
            batch,
        )
        normed = self._gated_norm(read.flatten(1), gate, self.norm_weight, self.norm_eps, spec.value_dim, spec.gate)
        return self.o(normed)

    def loaded(self) -> None:
        self.rate.data.exp_()

    def named_views(self) -> NamedViews:
        """Projections by their own names: that some are one product is no one else's business."""
        for name, view in super().named_views():
            yield name.removeprefix("inputs.").removeprefix("controls."), view
        rate = self.rate.data  # by channel, checkpoints hold it as what it is spread over
        yield "rate", rate if self.spec.decay == "head" else rate.view(1, 1, -1, 1)
        yield "decay_bias", self.decay_bias.data
        yield "norm.weight", self.norm_weight.data


class LowRank(Layer):
    """A projection through few numbers."""

    def __init__(self, ctx: BuildContext, input_size: int, rank: int, output_size: int) -> None:
        super().__init__()
        self.down = ReplicatedLinear(input_size, rank, ctx=ctx.under("down"))
        self.up = ColumnParallelLinear(rank, output_size, ctx=ctx.under("up"))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        out: Tensor = self.up(self.down(x))
        return out
