"""Where a token stands: rotary positions and how they are stretched."""

from dataclasses import dataclass
from typing import Literal

from moesaic.models.spec.checks import require_positive


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All wavelengths are stretched by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """NTK-by-parts (Peng et al. 2023): stretched below `beta_slow` rotations, kept above `beta_fast`.

    Attributes:
        attention_factor: multiplies cos and sin.
        truncate: round the bounds of the interpolated range to whole dimensions.
        score_factor: what latent attention multiplies its scores by, beside cos and sin.
    """

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    score_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024): each wavelength is stretched by a factor of its own, up to the original length.

    Beyond it other factors count, for the whole sequence at once; what is cached by then has the first ones. So a model
    serves the original length.

    Attributes:
        factors: of each pair.
        attention_factor: multiplies cos and sin.
    """

    factors: tuple[float, ...]
    attention_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """The first `share` of a head's pairs turn, with the wavelengths that they have among all; the others do not.

    Attributes:
        factor: all wavelengths are stretched by it.
    """

    share: float
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class QueryTemperature:
    """Queries grow with their position, so that attention stays sharp over long sequences (Nakanishi 2025,
    https://huggingface.co/papers/2501.19399).

    Attributes:
        growth: "log" multiplies by `1 + scale * log(1 + floor((position + offset) / period))`; "power" by
            `(1 + (position + offset) / period) ** scale`.
    """

    scale: float
    period: int
    offset: int = 0
    growth: Literal["log", "power"] = "log"

    def __post_init__(self) -> None:
        require_positive(self, "period")


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary positions: pairs of a head's numbers are turned.

    Attributes:
        dim: how many of a head's numbers, from the first on; None for all.
        interleaved: pairs are neighbours; else the halves of these numbers are turned against each other.
    """

    theta: float
    scaling: Llama3Scaling | LinearScaling | YarnScaling | LongScaling | ProportionalScaling | None = None
    dim: int | None = None
    interleaved: bool = False
