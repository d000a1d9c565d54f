"""What a model keeps in memory: matrices and vectors, by the canonical names of the parameters in them. Torch-free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moesaic.models.spec import NormSpec
from moesaic.weights.rules import Shape


@dataclass(frozen=True)
class Matrix:
    """A weight `[rows, cols]` = `[outputs, inputs]` as kernels keep it.

    Attributes:
        name: canonical, of the parameter that decides about its format.
        parts: the parameters that lie in it, and their shapes.
        gated: rows are gate's, then up's.
    """

    name: str
    rows: int
    cols: int
    parts: Mapping[str, Shape]
    gated: bool = False


@dataclass(frozen=True)
class Vector:
    """A parameter that is kept as numbers of its own, in fp32."""

    name: str
    shape: Shape


Kept = Matrix | Vector


def merged(at: str, sizes: Mapping[str, int], cols: int, bias: bool, gated: bool = False) -> Iterator[Kept]:
    """Several projections of the same input as one product."""
    parts = {f"{at}.{name}.weight": (size, cols) for name, size in sizes.items()}
    yield Matrix(next(iter(parts)), sum(sizes.values()), cols, parts, gated)
    if bias:
        yield from (Vector(f"{at}.{name}.bias", (size,)) for name, size in sizes.items())


def linear(at: str, rows: int, cols: int, bias: bool) -> Iterator[Kept]:
    """A projection of its own."""
    yield whole(at, rows, cols)
    if bias:
        yield Vector(f"{at}.bias", (rows,))


def whole(at: str, rows: int, cols: int) -> Matrix:
    """A matrix that is one parameter."""
    return Matrix(f"{at}.weight", rows, cols, {f"{at}.weight": (rows, cols)})


def norm_weights(at: str, spec: NormSpec, size: int) -> Iterator[Kept]:
    """A norm over `size` numbers."""
    yield Vector(f"{at}.weight", (size,))
    if spec.bias:
        yield Vector(f"{at}.bias", (size,))


def convolution(at: str, parts: Mapping[str, int], width: int, bias: bool) -> Iterator[Kept]:
    """A convolution of each channel, in the parts that it is kept in: name -> channels."""
    for part, size in parts.items():
        name = f"{at}.conv.{part}" if part else f"{at}.conv"
        yield Vector(f"{name}.weight", (size, 1, width))
        if bias:
            yield Vector(f"{name}.bias", (size,))
