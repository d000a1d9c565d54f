"""Rows that choose their experts otherwise than the model does: what the `route` kernels are told of them.

A layer has a `RouteTable` of rules, and all layers share the `RuledRows` of the step. Both stay where they are, for a
recorded call reads them anew at each replay; the structs are those of csrc/abi/router.h.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class _Rule(ctypes.Structure):
    """`moesaic_route_rule`."""

    _fields_ = (
        ("top_k", ctypes.c_int64),
        ("temperature", ctypes.c_float),
        ("bias", ctypes.c_void_p),
        ("banned", ctypes.c_void_p),
    )


class _Table(ctypes.Structure):
    """`moesaic_route_table`."""

    _fields_ = (("rule_of", ctypes.c_void_p), ("rules", ctypes.c_void_p))


@dataclass(frozen=True)
class Rule:
    """How a row chooses in one layer.

    Attributes:
        top_k: experts at most.
        temperature: divides the logits.
        bias: `[E]` fp32, added to the divided logits; None for none.
        banned: `[E]` bool, experts that may not be chosen, whose logits are -inf; None for none.
    """

    top_k: int
    temperature: float = 1.0
    bias: Tensor | None = None
    banned: Tensor | None = None

    def logits(self, logits: Tensor) -> Tensor:
        """The router's logits `[T, E]` under the rule, fp32 (a router's cap comes after bias and before the ban)."""
        given = logits.float() / self.temperature
        return given if self.bias is None else given + self.bias


class RuledRows:
    """Which rule each row of the step has.

    Attributes:
        rules: `[T]` int32; rule 0 is the model's own way. None where all rows have it.
        used: the rules that occur.
        room: places that each layer's choices must have, if it has so many experts; 0 for the model's.
    """

    room = 0

    def __init__(self) -> None:
        self._pointer = ctypes.c_void_p(None)
        self.rules: npt.NDArray[np.int32] | None = None
        self.used: tuple[int, ...] = ()

    @property
    def address(self) -> int:
        """Of the pointer to the rows, for kernels."""
        return ctypes.addressof(self._pointer)

    def set(self, rules: npt.NDArray[np.int32] | None) -> None:
        """The rules `[T]` of the step that comes; None for rule 0 alone."""
        self.rules = None if rules is None else np.ascontiguousarray(rules, dtype=np.int32)
        self.used = () if self.rules is None else tuple(np.unique(self.rules).tolist())
        self._pointer.value = None if self.rules is None else self.rules.ctypes.data

    def rows_of(self, rule: int, device: torch.device) -> Tensor:
        """`[n]` int64, the rows that have a rule."""
        assert self.rules is not None
        return torch.from_numpy(np.flatnonzero(self.rules == rule)).to(device)


class RouteTable:
    """One layer's rules, by the numbers that `rows` names.

    Args:
        top_k: of the model, which is rule 0.
    """

    def __init__(self, rows: RuledRows, num_experts: int, top_k: int) -> None:
        self.rows = rows
        self.num_experts = num_experts
        self.rules: list[Rule] = [Rule(top_k)]
        self._array = (_Rule * 0)()
        self._kept: dict[int, list[Tensor]] = {}  # what the structs point to
        self._table = _Table(rows.address, None)
        self._write(0)

    @property
    def address(self) -> int:
        """Of the table, for kernels."""
        return ctypes.addressof(self._table)

    @property
    def active(self) -> bool:
        """Whether a row of this step has a rule of its own."""
        return self.rows.rules is not None

    @property
    def top_k(self) -> int:
        """The model's."""
        return self.rules[0].top_k

    @property
    def width(self) -> int:
        """Places for a row's experts in this step: the model's top_k, or more where a row wants more."""
        return max(self.top_k, min(self.num_experts, self.rows.room))

    def set(self, number: int, rule: Rule) -> None:
        """Put a rule at a number; those between it and the others so far are the model's own way."""
        while len(self.rules) <= number:
            self.rules.append(self.rules[0])
            self._write(len(self.rules) - 1)
        self.rules[number] = rule
        self._write(number)

    def _write(self, number: int) -> None:
        """A rule as kernels on the CPU read it; there is room for as many again."""
        if number >= len(self._array):
            self._array = (_Rule * (2 * number + 1))(*self._array)
            self._table.rules = ctypes.addressof(self._array)
        rule = self.rules[number]
        bias = None if rule.bias is None else rule.bias.cpu().float().contiguous()
        banned = None if rule.banned is None else rule.banned.cpu().contiguous().view(torch.uint8)
        self._kept[number] = [tensor for tensor in (bias, banned) if tensor is not None]
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in (bias, banned))
        self._array[number] = _Rule(rule.top_k, rule.temperature, *pointers)
