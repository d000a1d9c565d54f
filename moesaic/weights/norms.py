"""Weights of a size that no training leaves behind, told by others of their kind. Torch-free."""

from collections.abc import Iterator, Mapping
from statistics import median

FAR = 1e3  # times the median of their kind, or that part of it
LARGE_EXPERT = 16.0  # experts of a layer differ less; small ones may be experts that nothing was routed to
FEWEST = 3  # others that say what is usual


def outliers(sizes: Mapping[str, float], experts: bool) -> Iterator[tuple[str, float]]:
    """The weights that are far from their kind, and how many times its median they are.

    Args:
        sizes: root mean squares of weights of one kind, by name; those of 0 are not looked at.
        experts: they are experts' of one layer.
    """
    if len(sizes) <= FEWEST or not (usual := median(sizes.values())):
        return
    for name, size in sizes.items():
        if size and not 1 / FAR <= size / usual <= (LARGE_EXPERT if experts else FAR):
            yield name, size / usual
