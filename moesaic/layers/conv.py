"""A causal convolution of each channel by itself, whose last inputs stay in a slot of the sequence."""

from collections.abc import Mapping

from torch import Tensor

from moesaic.core.batch import Batch
from moesaic.layers.base import BuildContext, Layer, NamedViews


class CausalConv(Layer):
    """y[t] = act(bias + sum over k of weight[k] * x[t - width + 1 + k]).

    Args:
        channels: in parts by name, whose canonical names are `{name}.weight`, or in one.
        silu: whether act is silu; else there is none.

    Attributes:
        weight: `[width, channels]` once loaded; until then `[channels, 1, width]`, as checkpoints have it.
        state_shape: of what is kept of a sequence.
    """

    def __init__(
        self, ctx: BuildContext, channels: int | Mapping[str, int], width: int, bias: bool, silu: bool = True
    ) -> None:
        super().__init__()
        self.parts = {"": channels} if isinstance(channels, int) else dict(channels)
        total = sum(self.parts.values())
        self.weight = ctx.parameter(total, 1, width)
        self.bias = ctx.parameter(total) if bias else None
        self.silu = silu
        self.state_shape = (width - 1, total)
        self._causal_conv = ctx.kernel("causal_conv")

    def forward(self, x: Tensor, state: Tensor, batch: Batch) -> Tensor:
        """`[T, channels]` -> `[T, channels]`; writes `state` `[slots, width - 1, channels]`."""
        out: Tensor = self._causal_conv(x, self.weight, self.bias, state, batch, self.silu)
        return out

    def named_views(self) -> NamedViews:
        start = 0
        for part, size in self.parts.items():
            rows, dot = slice(start, start + size), "." if part else ""
            yield f"{part}{dot}weight", self.weight.data[rows]
            if self.bias is not None:
                yield f"{part}{dot}bias", self.bias.data[rows]
            start += size

    def loaded(self) -> None:
        self.weight.data = self.weight.data.squeeze(1).T.contiguous()
