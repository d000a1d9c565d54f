"""Rows with rules of their own: both backends against a numpy account of what rules mean, and other rows' bits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from moesaic.kernels import reference_router
from moesaic.kernels.cpu import router as cpu_router
from moesaic.kernels.cpu.library import describe
from moesaic.kernels.route_table import RouteTable, Rule, RuledRows

BACKENDS = [reference_router.route]
if not describe().startswith("unavailable"):
    BACKENDS.append(cpu_router.route)
E, T = 24, 40


@dataclass
class Told:
    """A rule as the oracle knows it."""

    top_k: int
    temperature: float = 1.0
    bias: Any = None
    banned: tuple[int, ...] = ()


ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "renormalised": {"renormalize": True, "scale": 2.5, "epsilon": 1e-20},
    "sigmoid": {"scoring": "sigmoid", "renormalize": True, "bias": True},
    "after": {"order": "select_then_score", "bias": True},
    "softplus": {"scoring": "sqrt_softplus", "expert_scale": True},
    "groups": {"scoring": "sigmoid", "bias": True, "num_groups": 6, "top_groups": 3, "masked_score": 0.0},
    "best of groups": {"num_groups": 4, "top_groups": 2, "group_score": "max"},
    "capped": {"cap": 2.0},
    "identity": {"scoring": "identity"},
    "sparsemixer": {"scoring": "sparsemixer", "jitter": 0.01},
}


def oracle(logits: np.ndarray, rule: Told, options: dict[str, Any]) -> dict[int, float]:
    """Expert -> weight, of one token: in float64, by the definitions, one step after the other."""
    o = {"scoring": "softmax", "order": "score_then_select", "num_groups": 1, "top_groups": 1, "group_score": "top2"}
    o |= options
    x = logits.astype(np.float64) / rule.temperature
    if rule.bias is not None:
        x = x + np.asarray(rule.bias, dtype=np.float64)
    if o.get("cap"):
        x = o["cap"] * np.tanh(x / o["cap"])
    allowed = [e for e in range(E) if e not in rule.banned]
    x[list(rule.banned)] = -np.inf

    def score(values: np.ndarray) -> np.ndarray:
        if o["scoring"] == "softmax":
            powers = np.exp(values - values.max())
            return powers / powers.sum()
        if o["scoring"] == "sigmoid":
            return 1 / (1 + np.exp(-values))
        return np.sqrt(np.log1p(np.exp(values))) if o["scoring"] == "sqrt_softplus" else values

    by_score = o["order"] == "score_then_select" and (o.get("bias") is not None or o["num_groups"] > 1)
    choice = score(x) if by_score else x.copy()
    choice = choice + (0 if o.get("bias") is None else o["bias"].double().numpy())
    size = E // o["num_groups"]
    if o["num_groups"] > 1:
        worth = []
        for g in range(o["num_groups"]):
            inside = sorted((choice[e] for e in range(g * size, (g + 1) * size) if e in allowed), reverse=True)
            best = inside[: 1 if o["group_score"] == "max" else 2]
            worth.append(sum(best) if best else -np.inf)
        kept = sorted(range(o["num_groups"]), key=lambda g: (-worth[g], g))[: o["top_groups"]]
        for e in range(E):
            choice[e] = choice[e] if e // size in kept else o.get("masked_score", -np.inf)
    chosen = sorted(allowed, key=lambda e: (-choice[e], e))[: rule.top_k]
    if o["scoring"] == "sparsemixer":
        weights = []
        for i, e in enumerate(chosen):
            left = [a for a in allowed if a not in chosen[:i]]
            near = [a for a in left if not (x[e] - x[a]) / max(abs(x[a]), x[e]) > 2 * o["jitter"]]
            weights.append(np.exp(x[e]) / np.exp(x[near]).sum())
    elif o["order"] == "select_then_score":
        weights = list(score(x[chosen]))
    else:
        weights = [score(x)[e] for e in chosen]
    total = sum(weights) + o.get("epsilon", 0.0) if o.get("renormalize") else 1.0
    scale = o.get("scale", 1.0)
    factors = np.ones(E) if o.get("expert_scale") is None else o["expert_scale"].double().numpy()
    return {e: w / total * scale * factors[e] for e, w in zip(chosen, weights, strict=True)}


def told_rules(generator: np.random.Generator) -> list[Told]:
    return [
        Told(4),
        Told(2),
        Told(7),
        Told(4, bias=generator.normal(size=E).round(3)),
        Told(4, temperature=2.5),
        Told(4, banned=tuple(range(0, E, 2))),
        Told(4, banned=tuple(e for e in range(E) if e not in (5, 6))),
        Told(1, 0.5, generator.normal(size=E).round(3), (0, 1, 2)),
    ]


def table_of(told: list[Told], rows: np.ndarray) -> RouteTable:
    ruled = RuledRows()
    table = RouteTable(ruled, E, told[0].top_k)
    for number, rule in enumerate(told[1:], 1):
        banned = torch.zeros(E, dtype=torch.bool)
        banned[list(rule.banned)] = True
        bias = None if rule.bias is None else torch.tensor(rule.bias, dtype=torch.float32)
        table.set(number, Rule(rule.top_k, rule.temperature, bias, banned if rule.banned else None))
    ruled.set(rows)
    ruled.room = max(rule.top_k for rule in told)
    return table


def filled(options: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    known = {
        "bias": 0.3 * torch.randn(E, generator=generator),
        "expert_scale": torch.rand(E, generator=generator) + 0.5,
    }
    return {name: known.get(name, value) for name, value in options.items()}


@pytest.mark.parametrize("route", BACKENDS, ids=lambda f: f.__module__.rsplit(".", 1)[-1] + f.__module__.split(".")[2])
@pytest.mark.parametrize("name", ROUTERS)
def test_rules_mean_what_is_said(route: Any, name: str, isa: str) -> None:
    generator = np.random.default_rng(len(name))
    options = filled(ROUTERS[name])
    told = told_rules(generator)
    rows = generator.integers(0, len(told), T).astype(np.int32)
    logits = generator.normal(size=(T, E)).astype(np.float32)
    table = table_of(told, rows)
    counts = torch.zeros(E, dtype=torch.int64)
    ids, weights = route(torch.from_numpy(logits), table.width, counts=counts, table=table, **options)
    assert ids.shape == (T, 7)
    seen = np.zeros(E, dtype=np.int64)
    for t in range(T):
        expected = oracle(logits[t], told[rows[t]], options)
        got = dict(zip(ids[t].tolist(), weights[t].tolist(), strict=True))
        assert got.pop(-1, 0.0) == 0.0
        assert list(got) == list(expected), f"row {t}, rule {told[rows[t]]}"
        np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=2e-5)
        seen[list(expected)] += 1
    assert counts.tolist() == seen.tolist()


@pytest.mark.parametrize("route", BACKENDS, ids=lambda f: f.__module__)
@pytest.mark.parametrize("name", ROUTERS)
def test_other_rows_keep_their_bits(route: Any, name: str, isa: str) -> None:
    generator = np.random.default_rng(3)
    options = filled(ROUTERS[name])
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(9))
    logits[3] = 0.0
    logits[4, 1] = float("nan")
    logits[5, :20] = float("-inf")
    logits[6, ::3] = -0.0
    told = told_rules(generator)
    rows = generator.integers(0, len(told), T).astype(np.int32)
    rows[3:7] = 0
    own = rows == 0
    ids, weights = route(logits, 4, **options)
    mixed_ids, mixed_weights = route(logits, 7, table=table_of(told, rows), **options)
    assert torch.equal(mixed_ids[own][:, :4], ids[own])
    assert mixed_weights[own][:, :4].numpy().tobytes() == weights[own].numpy().tobytes()
    assert (mixed_ids[own][:, 4:] == -1).all()
    assert not mixed_weights[own][:, 4:].any()


def test_a_step_without_rules_forgets_them() -> None:
    table = table_of([Told(2), Told(1)], np.ones(T, dtype=np.int32))
    logits = torch.randn(T, E)
    for route in BACKENDS:
        assert (route(logits, 2, table=table)[0][:, 1] == -1).all()
    assert table.active and table.width == 2
    table.rows.set(None)
    assert not table.active and table.width == 2
    for route in BACKENDS:
        assert torch.equal(route(logits, 2, table=table)[0], route(logits, 2)[0])
