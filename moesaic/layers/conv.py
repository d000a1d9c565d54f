"""A causal convolution of each channel by itself, whose last inputs stay in a slot of the sequence."""

from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.layers.base import BuildContext, Layer, NamedViews


class CausalConv(Layer):
    """y[t] = act(bias + sum over k of weight[k] * x[t - width + 1 + k]).

    Args:
        silu: whether act is silu; else there is none.

    Attributes:
        weight: `[width, channels]` once loaded; until then `[channels, 1, width]`, as checkpoints have it.
        state_shape: of what is kept of a sequence.
    """

    def __init__(self, ctx: BuildContext, channels: int, width: int, bias: bool, silu: bool = True) -> None:
        super().__init__()
        self.weight = ctx.parameter(channels, 1, width)
        self.bias = ctx.parameter(channels) if bias else None
        self.silu = silu
        self.state_shape = (width - 1, channels)
        self._causal_conv = ctx.kernel("causal_conv")

    def forward(self, x: Tensor, state: Tensor, batch: Batch) -> Tensor:
        """`[T, channels]` -> `[T, channels]`; writes `state` `[slots, width - 1, channels]`."""
        out: Tensor = self._causal_conv(x, self.weight, self.bias, state, batch, self.silu)
        return out

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data
        if self.bias is not None:
            yield "bias", self.bias.data

    def loaded(self) -> None:
        self.weight.data = self.weight.data.squeeze(1).T.contiguous()
