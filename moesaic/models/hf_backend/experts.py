"""transformers' experts on our kernels: a function that its `ExpertsInterface` calls in every layer.

What an experts' module computes between its two products is found by trying: its own `_apply_gate` is given numbers,
and the activation of ours that makes the same of them is taken. Where none does, transformers' own code computes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.formats import WeightFormat
from moesaic.core.log import get_logger
from moesaic.experts.routing import Routing
from moesaic.experts.stats import ExpertStats, Tap
from moesaic.kernels.cpu.arena import Arenas
from moesaic.kernels.cpu.matmul import ACTIVATIONS as PACKED_ACTIVATIONS
from moesaic.kernels.cpu.matmul import PackedExperts
from moesaic.kernels.cpu.packed import PackedMatrix
from moesaic.kernels.reference_moe import ACTIVATIONS, ALPHA, LIMIT, SWIGLUOAI, activate_gated
from moesaic.kernels.registry import Case, choose, kernel
from moesaic.layers.base import KIND_OF

log = get_logger(__name__)

NAME = "moesaic_experts"
PROBE_SCALES = (1.0, 4.0, 30.0, 1000.0)  # of the numbers that an activation is told by: bounds must show
PROBE_WIDTH = 4096


def register() -> None:
    """Make the function known to transformers; again does no harm."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, _compute)


def _compute(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls: `[T, H]`, `[T, k]`, `[T, k]` -> `[T, H]`, weighted and summed."""
    ours: Experts | None = module.__dict__.get("moesaic")
    return (
        ours(module, hidden, top_k_index, top_k_weights) if ours else theirs(module)(hidden, top_k_index, top_k_weights)
    )


def theirs(module: nn.Module) -> Callable[..., Tensor]:
    """The forward pass that the module's class defines, behind transformers' decorator."""
    return type(module).forward.__wrapped__.__get__(module)  # type: ignore[attr-defined,no-any-return]


def is_experts(module: nn.Module) -> bool:
    """Whether transformers asks its interface how to compute this module."""
    return hasattr(module, "is_concatenated") and hasattr(module, "_apply_gate")


@dataclass(frozen=True)
class Activation:
    """An activation of our kernels, and whether gate and up lie interleaved in what it is given."""

    name: str
    alpha: float = ALPHA
    limit: float = LIMIT
    interleaved: bool = False


class Experts:
    """One layer's experts, as our kernels take them."""

    def __init__(self, slot_of: Tensor, weights: Any, activation: Activation, backend: str, tap: Tap) -> None:
        self.slot_of, self.weights, self.activation = slot_of, weights, activation
        self.backend, self.tap = backend, tap
        self._fused_moe = kernel("fused_moe", backend)

    def __call__(self, module: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        routing = note(self.tap, ids, weights)
        x = hidden.reshape(-1, hidden.shape[-1])
        if self.backend == "cpu":
            x = x.float()
        out: Tensor = self._fused_moe(
            x.contiguous(),
            routing.ids,
            routing.weights,
            self.weights,
            self.activation.name,
            alpha=self.activation.alpha,
            limit=self.activation.limit,
            tally=self.tap.tally,
        )
        return out.to(hidden.dtype).view(hidden.shape)

    @property
    def packed_bytes(self) -> int:
        """Memory of the weights that lie here and no longer in the module's parameters."""
        if isinstance(self.weights, PackedExperts):
            return sum(matrix.nbytes for matrix in self.weights.gate_up + self.weights.down)
        return self.weights.gate_up.nbytes if self.activation.interleaved else 0


@dataclass
class PlainExperts:
    """`kernels.reference_moe.Experts` of whole tensors."""

    slot_of: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


def take_over(model: nn.Module, device: torch.device, wanted: str) -> tuple[ExpertStats, list[str]]:
    """Give every experts' module of a loaded model to our kernels, where they can compute it.

    Args:
        wanted: the backend asked for, or "auto".

    Returns:
        the counters, and for each module that transformers goes on to compute, why.
    """
    modules = [(name, module) for name, module in model.named_modules() if is_experts(module)]
    layers = [_layer(name, i) for i, (name, _) in enumerate(modules)]
    most = max((_count_of(m) for _, m in modules), default=0)
    counters = ExpertStats(max(layers, default=-1) + 1, most, device, len(layers) - len(set(layers)))
    left = []
    memory = Arenas()
    for layer, (name, module) in zip(layers, modules, strict=True):
        tap = counters.tap(layer, _count_of(module), 0)  # how many a token has, it shows when it is first asked
        module.config._experts_implementation = NAME
        reason = _take(module, tap, wanted, memory)
        if reason is not None:
            left.append(f"{name}: {reason}")
            object.__setattr__(module, "moesaic", _Counted(tap))
    return counters, left


class _Counted:
    """Experts that transformers computes: only counted here."""

    packed_bytes = 0

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        note(self.tap, ids, weights)
        return theirs(module)(hidden, ids, weights)


def note(tap: Tap, ids: Tensor, weights: Tensor) -> Routing:
    """Count the choices `[T, k]` and keep them, as our own routers give them: ids that name no expert are -1."""
    named = (ids >= 0) & (ids < tap.num_experts)
    if tap.counts is not None:
        tap.counts.add_(torch.bincount(ids[named], minlength=tap.num_experts))
    routing = Routing(
        torch.where(named, ids, -1).int().contiguous(), torch.where(named, weights, 0.0).float().contiguous()
    )
    tap.note(routing)
    return routing


def _layer(name: str, index: int) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else index


def _count_of(module: Any) -> int:
    return int(module.num_experts)


def _take(module: Any, tap: Tap, wanted: str, memory: Arenas) -> str | None:
    """Move a module's weights to where our kernels read them; or why they stay."""
    if module.has_post_expert_norm:
        return "its outputs are normed before they are weighed"
    activation = find_activation(module)
    if activation is None:
        return "its activation is none of ours"
    first, down = module.gate_up_proj if module.has_gate else module.up_proj, module.down_proj
    backend = choose(
        [
            Case(
                family="matrices",
                device=first.device.type,
                activations="torch.float32",
                weights=str(first.dtype),
                options=(("activation", activation.name),),
            )
        ],
        wanted,
    )
    wide, narrow = (w.data.transpose(1, 2) if module.is_transposed else w.data for w in (first, down))
    biases: list[Tensor | None] = [None, None]
    if module.has_bias:
        biases = [
            (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias).data.float(),
            module.down_proj_bias.data.float(),
        ]
    if activation.interleaved:
        wide = torch.cat((wide[:, 0::2], wide[:, 1::2]), 1)
        biases[0] = None if biases[0] is None else torch.cat((biases[0][:, 0::2], biases[0][:, 1::2]), 1)
    slot_of = torch.arange(len(wide), dtype=torch.int32, device=wide.device)
    if backend == "cpu":
        form = WeightFormat(KIND_OF[wide.dtype])
        weights: Any = PackedExperts(
            slot_of,
            [_packed(w, form, module.has_gate, memory) for w in wide],
            [_packed(w, form, False, memory) for w in narrow],
            *(None if bias is None else list(bias.unbind()) for bias in biases),
        )
        for parameter in (first, down):
            parameter.data = parameter.data.new_empty(0)  # it lies packed now
    else:
        weights = PlainExperts(slot_of, wide, narrow, *biases)
        if activation.interleaved:
            first.data = first.data.new_empty(0)
    object.__setattr__(module, "moesaic", Experts(slot_of, weights, activation, backend, tap))
    return None


def _packed(weight: Tensor, form: WeightFormat, gated: bool, memory: Arenas) -> PackedMatrix:
    matrix = PackedMatrix.empty(*weight.shape, form, gated, memory.take)
    if gated:
        gate, up = weight.chunk(2)
        matrix.gate_sink().fill(gate.contiguous())
        matrix.up_sink().fill(up.contiguous())
    else:
        matrix.sink().fill(weight.contiguous())
    return matrix


def find_activation(module: Any) -> Activation | None:
    """The activation of ours that does what the module does between its products; None if none does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(len(PROBE_SCALES), PROBE_WIDTH).uniform_(-1.0, 1.0, generator=generator)
    x *= torch.tensor(PROBE_SCALES)[:, None]
    bound = 1e-6 * torch.tensor(PROBE_SCALES)[:, None] ** 2  # gate and up are multiplied, and so are their errors
    theirs_of = module._apply_gate if module.has_gate else module.act_fn
    with torch.inference_mode():
        expected = theirs_of(x.clone())
        for candidate in _candidates(module):
            if bool((_ours(candidate, module.has_gate, x) - expected).abs().le(bound + 1e-5 * expected.abs()).all()):
                return candidate
    return None


def _candidates(module: Any) -> list[Activation]:
    names = [name for name in ACTIVATIONS if name in PACKED_ACTIVATIONS]
    if not module.has_gate:
        return [Activation(name) for name in names]
    alpha, limit = _number(module, ALPHA, "alpha", "swiglu_alpha"), _number(module, LIMIT, "limit", "swiglu_limit")
    found = [*(Activation(name) for name in names), Activation(SWIGLUOAI, alpha, limit)]
    return found + [Activation(a.name, a.alpha, a.limit, interleaved=True) for a in found]


def _number(module: Any, default: float, *names: str) -> float:
    """A number that a module keeps under one of these names: a guess, which trying proves."""
    found = [getattr(module, name) for name in names if isinstance(getattr(module, name, None), int | float)]
    return float(found[0]) if found else default


def _ours(activation: Activation, gated: bool, x: Tensor) -> Tensor:
    if not gated:
        return ACTIVATIONS[activation.name](x)
    if activation.interleaved:
        x = torch.cat((x[:, 0::2], x[:, 1::2]), 1)
    return activate_gated(x, activation.name, activation.alpha, activation.limit)
