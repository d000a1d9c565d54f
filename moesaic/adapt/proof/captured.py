"""What two models are compared by: tensors that a reference leaves behind, in fp32 on the CPU."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

TOLERANCES = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 1e-2}  # of one operation or layer, by dtype
FLIPS = {"float32": 0.02, "bfloat16": 0.25, "float16": 0.1}  # tokens whose nearly equal experts may swap places
Ops = dict[str, Tensor]


@dataclass
class Prompt:
    """Tokens and what the reference makes of them.

    Attributes:
        tokens: the prompt, then what the reference generated greedily.
        start: how many of them are the prompt.
        logits: `[T, V]`, of each token.
        inputs: what each layer is given, `[T, H]`, and last what the last one gives; empty where nobody knows.
        ops: of each layer, what its parts give (`results.OPS`); "chosen experts" `[T, k]` int64, "weights" `[T, E]`.
    """

    tokens: list[int]
    start: int
    logits: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    ops: list[Ops] = field(default_factory=list)


@dataclass
class Probe:
    """Experts called alone: `[T, W]` -> `[T, W]`, by routes `[T, k]` that no router chose.

    Attributes:
        moe: which of the model's layers with experts, counted from 0.
    """

    moe: int
    hidden: Tensor
    ids: Tensor
    weights: Tensor
    output: Tensor | None = None


class Model(Protocol):
    """What stages 1 to 3 and the search ask of a reference.

    Attributes:
        name: what it is, and whose code.
        shares: what it has in common with the engine, in words.
    """

    name: str
    shares: str

    @property
    def num_layers(self) -> int:
        """Layers that `run` tells of."""

    def apply(self, probe: Probe) -> Tensor | None:
        """The output of a probe; None where the experts of this architecture cannot be called alone."""

    def run(self, tokens: list[int], trace: bool) -> Prompt:
        """All logits of a sequence and, where `trace` says so, what went through the layers."""


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max |difference| over max |reference|; infinite for other shapes, NaN where ours is."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.numel():
        return 0.0
    most = float(theirs.abs().max())
    return float((ours.float() - theirs.float()).abs().max()) / (most or 1.0)


def by_token(ours: Tensor, theirs: Tensor, beside: Tensor | None = None) -> Tensor:
    """The same for each row, still over the largest number of all: `[T, N]` -> `[T]`.

    Args:
        beside: whose largest number counts as well: of a layer's output its input, for their difference is rounded too.
    """
    most = max(float(x.abs().max()) for x in (theirs, beside) if x is not None) or 1.0
    return (ours.float() - theirs.float()).abs().amax(-1) / most


def dense_weights(ids: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """Each expert's weight for each token, 0 where it was not chosen: `[T, k]` twice -> `[T, E]`."""
    return torch.zeros(len(ids), num_experts).scatter_add_(1, ids.long(), weights.float())


def other_choices(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which tokens have other experts, in whatever order: `[T, k]` twice -> `[T]` bool."""
    if ours.shape != theirs.shape:
        return torch.ones(len(theirs), dtype=torch.bool)
    return (ours.long().sort(-1).values != theirs.long().sort(-1).values).any(-1)


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """The prompt, and the `count` likeliest tokens after it, each computed anew: caches are not what is compared."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.run(tokens, trace=False).logits[-1].argmax()))
    return tokens
