"""The dense feed-forward, gated or not."""

from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.linear import ActivatedLinear, GatedLinear, RowParallelLinear
from moesaic.models.spec import DenseSpec


class MLP(Layer):
    """down(act(gate(x)) * up(x)), gate and up as one product; or, not gated, down(act(up(x)))."""

    def __init__(self, ctx: BuildContext, spec: DenseSpec, hidden_size: int) -> None:
        super().__init__()
        size = spec.intermediate_size
        if spec.gated:
            self.gate_up: Layer = GatedLinear(
                hidden_size, size, spec.activation, bias=spec.bias, limit=spec.limit, ctx=ctx
            )
        else:
            self.gate_up = ActivatedLinear(hidden_size, {"up": size}, spec.activation, bias=spec.bias, ctx=ctx)
        self.down = RowParallelLinear(size, hidden_size, bias=spec.bias, ctx=ctx.under("down"))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        out: Tensor = self.down(self.gate_up(hidden))
        return out

    def named_views(self) -> NamedViews:
        """Gate and up by their own names."""
        for name, view in super().named_views():
            yield name.removeprefix("gate_up."), view
