"""The table of token embeddings, and the projection to logits, which may be the same table."""

from typing import Any

from torch import Tensor

from moesaic.kernels.cpu.packed import Both, PackedMatrix
from moesaic.layers.base import BuildContext, Layer, NamedViews, rows_of


class Embedding(Layer):
    """One vector a token.

    Attributes:
        twin: the LM head's matrix where the two are tied but kept in different formats: it is filled with this one.
    """

    twin: PackedMatrix | None = None

    def __init__(self, ctx: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = ctx.matrix("weight", vocab_size, hidden_size)
        self._embed = ctx.kernel("embed")

    def forward(self, token_ids: Tensor, scale: float = 1.0) -> Tensor:
        """`[T]` int64 -> `[T, hidden]`, times `scale`."""
        out: Tensor = self._embed(token_ids, self.weight, scale)
        return out

    def named_views(self) -> NamedViews:
        if self.twin is not None:
            yield "weight", Both(self.weight.sink(), self.twin.sink())
        else:
            yield "weight", rows_of(self.weight, 0, self.vocab_size)


class LMHead(Layer):
    """Hidden states to logits.

    Args:
        tied: the embedding whose table serves here too; the head then has no parameter of its own (but a copy of the
            table, where the head is to be kept in another format).
    """

    def __init__(
        self, ctx: BuildContext, vocab_size: int, hidden_size: int, tied: Embedding | None, bias: bool = False
    ) -> None:
        super().__init__()
        self.tied = tied is not None
        self.vocab_size = vocab_size
        self.weight = self._shared(ctx, tied) if tied is not None else ctx.matrix("weight", vocab_size, hidden_size)
        self.bias = ctx.parameter(vocab_size) if bias else None
        self._linear = ctx.kernel("linear")

    @staticmethod
    def _shared(ctx: BuildContext, tied: Embedding) -> Any:
        table = tied.weight
        if not isinstance(table, PackedMatrix) or ctx.format_of("weight") == table.format:
            return table
        tied.twin = ctx.matrix("weight", *table.shape)
        return tied.twin

    def forward(self, hidden: Tensor, scale: float = 1.0) -> Tensor:
        """`[N, hidden]` -> `[N, vocab]` float32, times `scale`."""
        logits: Tensor = self._linear(hidden, self.weight, self.bias, scale=scale)
        return logits.float()

    def named_views(self) -> NamedViews:
        if not self.tied:
            yield "weight", rows_of(self.weight, 0, self.vocab_size)
        if self.bias is not None:
            yield "bias", self.bias.data
