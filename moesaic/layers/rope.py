"""Rotary positions: the frequencies that a spec asks for."""

import math
from functools import cache

import torch
from torch import Tensor

from moesaic.models.spec import LinearScaling, Llama3Scaling, LongScaling, ProportionalScaling, RopeSpec, YarnScaling


@cache
def shared_frequencies(spec: RopeSpec, dim: int, device: torch.device) -> tuple[Tensor, float]:
    """One tensor for all layers with the same spec, so that a step makes one table for them."""
    inverse, factor = inverse_frequencies(spec, dim)
    return inverse.to(device), factor


def inverse_frequencies(spec: RopeSpec, dim: int) -> tuple[Tensor, float]:
    """The angle a position turns each pair by, `[dim / 2]` fp32, and the factor on cosines and sines."""
    inverse = 1.0 / spec.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    match spec.scaling:
        case LinearScaling(factor=factor):
            return inverse / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(inverse, scaling), 1.0
        case LongScaling() as scaling:
            return inverse / torch.tensor(scaling.factors), scaling.attention_factor
        case ProportionalScaling(share=share, factor=factor):
            turning = torch.arange(inverse.shape[0]) < int(share * dim // 2)
            return torch.where(turning, inverse / factor, 0.0), 1.0
        case YarnScaling() as scaling:
            return _yarn(inverse, spec.theta, scaling), scaling.attention_factor
    return inverse, 1.0


def _llama3(inverse: Tensor, s: Llama3Scaling) -> Tensor:
    """Divide low frequencies by the factor, keep high ones, interpolate between."""
    rotations = s.original_max_position * inverse / (2 * math.pi)  # in the original context
    smooth = (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * inverse / s.factor + smooth * inverse


def _yarn(inverse: Tensor, theta: float, s: YarnScaling) -> Tensor:
    """Divide frequencies with few rotations in the original context by the factor, keep those with many."""
    half = inverse.shape[0]

    def dimension(rotations: float) -> float:
        """The (fractional) pair that turns this often over the original context."""
        return half * math.log(s.original_max_position / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse / s.factor * ramp + inverse * (1 - ramp)
