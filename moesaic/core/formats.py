"""How the elements of a weight are kept. Torch-free."""

from dataclasses import dataclass
from typing import Literal, get_args

from moesaic.core.errors import ConfigError, unknown_name

Kind = Literal["f32", "f16", "bf16", "w8", "w4", "w8a8", "mxfp4"]
KINDS: tuple[str, ...] = get_args(Kind)
QUANTISED = ("w8", "w4", "w8a8", "mxfp4")
GROUPS = (0, 32, 64, 128)


@dataclass(frozen=True)
class WeightFormat:
    """The format of a packed matrix.

    Attributes:
        kind: f32, f16, bf16; w8 and w4 (8- and 4-bit codes, 16-bit activations), w8a8 (8-bit activations too), mxfp4
            (4-bit floats, E2M1, in groups of 32 that share a power of two: OCP Microscaling Formats 1.0).
        group: quantised kinds: consecutive inputs that share a scale: 32, 64 or 128, or 0 for a whole row (always 0
            for the others).
        offsets: w8 and w4: each group has an offset beside its scale (asymmetric).

    Raises:
        ConfigError: an attribute has a value that no kernel knows.
    """

    kind: Kind
    group: int = 128
    offsets: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"{unknown_name('weight format', self.kind, KINDS)}; there are {', '.join(KINDS)}")
        if not self.quantised:
            object.__setattr__(self, "group", 0)  # equal formats compare equal
        if self.group not in GROUPS:
            raise ConfigError(f"group size must be 32, 64, 128, or 0 for a whole row; got {self.group}")
        if self.kind == "mxfp4":
            object.__setattr__(self, "group", 32)
        if self.offsets and self.kind not in ("w8", "w4"):
            raise ConfigError(f"weight format {self.kind} has no offsets")

    @property
    def quantised(self) -> bool:
        """Codes and scales rather than floating-point numbers."""
        return self.kind in QUANTISED

    def __str__(self) -> str:
        """`bf16`, `w8 by row`, `w4 in groups of 128 with offsets`."""
        if not self.quantised:
            return self.kind
        groups = f"in groups of {self.group}" if self.group else "by row"
        return f"{self.kind} {groups}{' with offsets' if self.offsets else ''}"
