"""The table of token embeddings, and the projection to logits, which may be the same table."""

import torch.nn.functional as F
from torch import Tensor

from moesaic.layers.base import BuildContext, Layer, NamedViews


class Embedding(Layer):
    """One vector a token."""

    def __init__(self, ctx: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = ctx.parameter(vocab_size, hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """`[T]` int64 -> `[T, hidden]`."""
        return F.embedding(token_ids, self.weight)

    def named_views(self) -> NamedViews:
        yield "weight", self.weight.data


class LMHead(Layer):
    """Hidden states to logits.

    Args:
        tied: the embedding whose table serves here too; the head then has no parameter of its own.
    """

    def __init__(self, ctx: BuildContext, vocab_size: int, hidden_size: int, tied: Embedding | None) -> None:
        super().__init__()
        self.tied = tied is not None
        self.weight = tied.weight if tied is not None else ctx.parameter(vocab_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[N, hidden]` -> `[N, vocab]` float32."""
        return F.linear(hidden, self.weight).float()

    def named_views(self) -> NamedViews:
        if not self.tied:
            yield "weight", self.weight.data
