"""How many tokens each expert of each layer has served: always counted, read by metrics, placement and residency."""

import torch
from torch import Tensor


class ExpertStats:
    """Counts of routed tokens, `[layers, experts]` int64, on the model's device (0 where a layer has no experts)."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self._one = torch.ones((), dtype=torch.int64, device=device)

    def record(self, layer: int, ids: Tensor) -> None:
        """Count the experts `[T, k]` int32 chosen in a layer, once each."""
        self.counts[layer].index_add_(0, ids.flatten(), self._one.expand(ids.numel()))

    def reset(self) -> None:
        """Start from zero."""
        self.counts.zero_()
