"""The table of token embeddings, and the projection to logits, which may be the same table."""

from typing import Any

from torch import Tensor

from moesaic.kernels.cpu.packed import Both, PackedMatrix
from moesaic.layers.base import BuildContext, Layer, NamedViews, rows_of
from moesaic.layers.context import LinearMethod, context_of


class VocabParallelEmbedding(Layer):
    """One vector a token.

    Attributes:
        twin: the LM head's matrix where the two are tied but kept in different formats: it is filled with this one.
    """

    twin: PackedMatrix | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        super().__init__()
        ctx = context_of(self, ctx, prefix, linear_method, plain=True)
        self.vocab_size = num_embeddings
        self.weight = ctx.matrix("weight", num_embeddings, embedding_dim)
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


class ParallelLMHead(Layer):
    """Hidden states to logits.

    Args:
        tied: the embedding whose table serves here too; the head then has no parameter of its own (but a copy of the
            table, where the head is to be kept in another format).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bias: bool = False,
        *,
        tied: VocabParallelEmbedding | None = None,
        prefix: str = "",
        linear_method: LinearMethod = None,
        ctx: BuildContext | None = None,
    ) -> None:
        super().__init__()
        ctx = context_of(self, ctx, prefix, linear_method)
        self.tied = tied is not None
        self.vocab_size = num_embeddings
        if tied is not None:
            self.weight = self._shared(ctx, tied)
        else:
            self.weight = ctx.matrix("weight", num_embeddings, embedding_dim)
        self.bias = ctx.parameter(num_embeddings) if bias else None
        self._linear = ctx.kernel("linear")

    @staticmethod
    def _shared(ctx: BuildContext, tied: VocabParallelEmbedding) -> Any:
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
