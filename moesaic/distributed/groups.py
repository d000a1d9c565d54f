"""Process groups: which ranks compute a layer together. One rank yet; layers already speak to a group."""

from dataclasses import dataclass

import torch

from moesaic.core.errors import UnsupportedError


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those that share a layer. Raises UnsupportedError for more than one rank."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size != 1 or self.rank != 0:
            raise UnsupportedError(f"rank {self.rank} of {self.size}: only one rank is supported yet")

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place. Of one rank: `x` itself."""
        return x


SINGLE = ProcessGroup()
