"""The experts that tokens went to: as bytes between processes, as arrays for callers. Torch-free; numpy when asked."""

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ID_BYTES, WEIGHT_BYTES = 2, 4


class RoutedTokens(msgspec.Struct, array_like=True):
    """Where consecutive tokens of one sequence went.

    Attributes:
        layers: `[L]`, index of the decoder layer of each router.
        start: position of the first token.
        num_tokens, top_k: T and k of the arrays; k is the most choices of any token in any layer.
        ids: `[T, L, k]` int16, little-endian: experts, best first, -1 for none.
        weights: `[T, L, k]` fp32, little-endian, 0 where there is no expert.
    """

    layers: list[int]
    start: int
    num_tokens: int
    top_k: int
    ids: bytes
    weights: bytes

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.num_tokens

    def between(self, start: int, end: int) -> "RoutedTokens | None":
        """Of the tokens at positions [start, end) alone; None where none of them is here."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return None
        if (start, end) == (self.start, self.end):
            return self
        size = len(self.layers) * self.top_k
        first, last = (start - self.start) * size, (end - self.start) * size
        ids = self.ids[first * ID_BYTES : last * ID_BYTES]
        weights = self.weights[first * WEIGHT_BYTES : last * WEIGHT_BYTES]
        return RoutedTokens(self.layers, start, end - start, self.top_k, ids, weights)


class RoutedExperts:
    """The experts of a sequence's tokens, from position `start` on, as far as they were computed.

    A token's experts are known once it was computed, which is when the one after it is drawn: so the last token drawn
    has none, and there are prompt + generated - 1 in all.
    """

    __slots__ = ("pieces",)

    def __init__(self, pieces: list[RoutedTokens] | None = None) -> None:
        self.pieces = pieces if pieces is not None else []

    @property
    def layers(self) -> list[int]:
        """`[L]`, index of the decoder layer of each router; one with experts in attention too is there twice, and
        attention's stand first."""
        return self.pieces[0].layers if self.pieces else []

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.pieces[0].start if self.pieces else 0

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.pieces[-1].end if self.pieces else 0

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    @property
    def ids(self) -> "NDArray[np.int16]":
        """`[tokens, L, k]` int16: experts, best first; -1 where a layer or a token has fewer than k."""
        ids: NDArray[np.int16] = self._array("ids", "<i2", -1)
        return ids

    @property
    def weights(self) -> "NDArray[np.float32]":
        """`[tokens, L, k]` fp32: what each expert's output was multiplied by; 0 where there is none."""
        weights: NDArray[np.float32] = self._array("weights", "<f4", 0)
        return weights

    def __repr__(self) -> str:
        return f"RoutedExperts(layers={self.layers}, start={self.start}, num_tokens={self.num_tokens})"

    def _array(self, name: str, dtype: str, filler: int) -> Any:
        import numpy as np

        width = max((piece.top_k for piece in self.pieces), default=0)
        whole = np.full((self.num_tokens, len(self.layers), width), filler, dtype=dtype)
        row = 0
        for piece in self.pieces:
            shape = (piece.num_tokens, len(piece.layers), piece.top_k)
            whole[row : row + piece.num_tokens, :, : piece.top_k] = np.frombuffer(
                getattr(piece, name), dtype=dtype
            ).reshape(shape)
            row += piece.num_tokens
        return whole
