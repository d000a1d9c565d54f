"""How many tokens each expert of each layer has served: always counted, read by metrics, placement and residency."""

import torch
from torch import Tensor


class ExpertStats:
    """Counts of routed tokens, `[layers, experts]` int64, on the model's device (0 where a layer has no experts).

    The kernels of routing add to them (`of_layer`).
    """

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)

    def of_layer(self, layer: int, num_experts: int) -> Tensor:
        """The counts `[E]` of one layer: a view, which stays where it is."""
        return self.counts[layer, :num_experts]

    def reset(self) -> None:
        """Start from zero."""
        self.counts.zero_()
