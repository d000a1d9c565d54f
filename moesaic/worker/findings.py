"""What was found where numbers stopped being finite: the place, what was seen there, the cause and what helps."""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, kw_only=True)
class RouterState:
    """A router's answer for the token in question.

    Attributes:
        lowest, highest: of its logits.
        probability_sum: of the softmax of the logits; NaN where some logit is not finite.
        experts, weights: that it chose, and with what weight.
    """

    lowest: float
    highest: float
    probability_sum: float
    experts: list[int]
    weights: list[float]

    def __str__(self) -> str:
        chosen = ", ".join(f"{e}: {w:.3g}" for e, w in zip(self.experts, self.weights, strict=True))
        total = f"probabilities sum to {self.probability_sum:.4g}"
        return f"logits from {self.lowest:.4g} to {self.highest:.4g}, {total}; chosen {chosen}"


@dataclass(frozen=True, kw_only=True)
class WeightNote:
    """One weight, beside those of the same name in other layers and experts.

    Attributes:
        name: canonical.
        nonfinite: numbers in it that are NaN or infinite.
        first: where the first of them is; None where there is none.
        rms: root mean square of the finite ones.
        usual: the median of the others' root mean squares; None where there are no others.
    """

    name: str
    nonfinite: int
    first: tuple[int, ...] | None
    rms: float
    usual: float | None

    @property
    def ratio(self) -> float | None:
        """Its root mean square over the usual one."""
        return None if not self.usual else self.rms / self.usual

    @property
    def spoilt(self) -> str:
        """What of it is not finite."""
        return f"{self.nonfinite} in {self.name}, the first at {list(self.first or ())}"

    def __str__(self) -> str:
        if self.nonfinite:
            return f"{self.name}: {self.nonfinite} numbers are not finite, the first at {list(self.first or ())}"
        if self.ratio is None:
            return f"{self.name}: rms {self.rms:.3g}"
        return f"{self.name}: rms {self.rms:.3g}, {self.ratio:.3g} times the median of its neighbours"


@dataclass(frozen=True)
class WeightFault:
    """A weight that no training leaves behind.

    Attributes:
        name: canonical.
        kind: "not finite", "absurd norm", "zero" or "duplicate".
        tensor: the checkpoint's; None where loading did not tell.
    """

    name: str
    kind: str
    text: str
    tensor: str | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" + ("" if self.tensor is None else f" (tensor {self.tensor})")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first operation, for some sequence, whose output is not finite.

    Attributes:
        layer, expert: numbers; None where it is in none.
        op: what it computes, by the name of its weight within layer and expert (`down`, `attention.q`), or in words.
        where: path of the module.
        kind: "NaN", or "infinity" where nothing is NaN.
        dtype: of what it gives.
        largest: absolute value that it was given; None where that was not looked at.
        exact: the largest that it gives where it is computed in float64; None likewise.
        cause, advice: in words.
        router: the layer's last router, where it was asked before.
        expert_norms: what each expert makes of the token, by its Euclidean norm; empty where it is not about experts.
        weights: that take part.
        before: the largest absolute values of what the operations before it gave, in order.
        position: of the token in its sequence; None where tokens could not be told apart.
    """

    layer: int | None
    expert: int | None
    op: str
    where: str
    kind: str
    dtype: str
    largest: float | None
    exact: float | None
    cause: str
    advice: str
    router: RouterState | None
    expert_norms: dict[int, float]
    weights: list[WeightNote]
    before: list[tuple[str, float]]
    position: int | None

    @property
    def place(self) -> str:
        """`layer 3, expert 5, down`."""
        parts = [] if self.layer is None else [f"layer {self.layer}"]
        return ", ".join([*parts, *([] if self.expert is None else [f"expert {self.expert}"]), self.op])

    @property
    def usual_norm(self) -> float | None:
        """Median of the norms of the other experts' outputs."""
        others = sorted(n for e, n in self.expert_norms.items() if e != self.expert and isfinite(n))
        return others[len(others) // 2] if others else None

    def __str__(self) -> str:
        """One line."""
        return f"first {self.kind} in {self.place} ({self.where}): {self.cause}. {self.advice}"

    def details(self) -> list[str]:
        """What else was seen, a line each."""
        lines = [] if self.largest is None else [f"largest input {self.largest:.4g}, computed in {self.dtype}"]
        if self.exact is not None and isfinite(self.exact):
            lines.append(f"in float64 its largest output is {self.exact:.4g}")
        if self.router is not None:
            lines.append(f"router: {self.router}")
        if self.expert is not None and self.expert in self.expert_norms:
            usual = "no other" if self.usual_norm is None else f"the others' median {self.usual_norm:.4g}"
            lines.append(f"norm of the expert's output {self.expert_norms[self.expert]:.4g}, {usual}")
        lines += [str(note) for note in self.weights]
        if self.before:
            lines.append("before it: " + ", ".join(f"{name} {peak:.3g}" for name, peak in self.before))
        return lines
