"""Routers, experts, shared experts and dense feed-forwards. Torch-free."""

from collections import defaultdict
from dataclasses import dataclass, field

from moesaic.adapt.draft.names import EXPERT_WORDS, Named
from moesaic.adapt.draft.structure import Match, Structure, Values
from moesaic.weights.rules import Shape

GATED = {
    "gate": {"gate", "w1", "wi_0", "g", "linear", "gate_fc"},
    "up": {"up", "w3", "wi_1", "v1", "v", "up_fc"},
    "down": {"down", "w2", "wo", "1", "fc2", "out", "output", "o"},
}
PLAIN = {
    "up": {"up", "fc1", "w1", "wi", "in", "input", "fc_in", "fc", "0", "h_4h", "1", "inner"},
    "down": {"down", "fc2", "w2", "wo", "out", "output", "fc_out", "2", "c_proj", "4h_h", "proj"},
}
SHARED = {"shared", "share", "common", "always", "shexp", "residual"}
ROUTER = {"router", "gate", "gating", "wg", "switch", "selector", "routing", "classifier", "inp"}
CORRECTION = {"correction", "score", "e", "balance", "expert", "experts", "aux", "exp"}


@dataclass
class Part:
    """The matrices of one feed-forward: last word of the name -> group, of weights and of biases."""

    weights: dict[str, Named] = field(default_factory=dict)
    biases: dict[str, Named] = field(default_factory=dict)


def match_feed_forward(s: Structure, groups: list[Named], stated: Values) -> list[Named]:
    """All feed-forwards; the groups left over are returned."""
    layers = [g for g in groups if g.layers]
    experts = [g for g in layers if _of_experts(g)]
    s.num_experts = _count_experts(experts, layers, s.hidden, stated)
    done: set[str] = set()
    if experts:
        s.moe_layers = tuple(sorted({n for g in experts for n in g.layers}))
    if s.num_experts:
        done |= _router(s, [g for g in layers if g not in experts and not g.experts])
    parts: dict[str, Part] = defaultdict(Part)
    scope_of: dict[str, list[Named]] = defaultdict(list)
    for g in layers:
        if g.template in done:
            continue
        scope = _scope(s, g, experts)
        side = parts[scope].weights if g.kind == "weight" else parts[scope].biases
        if g.tail not in side:
            side[g.tail] = g
            scope_of[scope].append(g)
    for scope, part in parts.items():
        if _feed_forward(s, scope, part):
            done |= {g.template for g in scope_of[scope]}
    return [g for g in groups if g.template not in done]


def _of_experts(g: Named) -> bool:
    """Belongs to one expert, or holds all of a layer's."""
    if g.experts:
        return True
    inside = set(g.where) & (EXPERT_WORDS | {"moe", "exps"}) or {"exps", "experts"} & set(g.leaf)
    shared = g.words & SHARED
    if len(g.shape) == 1:
        return False
    stacked = len(g.shape) == 3 or bool(set(g.where) & EXPERT_WORDS) or (g.kind == "bias" and len(g.shape) == 2)
    routes = g.words & (ROUTER - {"gate"}) or (g.leaf == ("gate",) and len(g.shape) == 2)
    return bool(inside or len(g.shape) == 3) and stacked and not shared and not routes


def _count_experts(experts: list[Named], layers: list[Named], hidden: int, stated: Values) -> int:
    numbered = max((max(g.experts) + 1 for g in experts if g.experts), default=0)
    stacked = next((g.shape[0] for g in experts if len(g.shape) == 3), 0)
    return numbered or stacked or (int(stated.get("num_experts") or 0) if experts else 0)


def _router(s: Structure, groups: list[Named]) -> set[str]:
    """The router's weight, its bias, and the correction of its choice."""
    count, done = s.num_experts, set()
    named = [g for g in groups if len(g.shape) == 2 and set(g.shape) == {count, s.hidden} and g.words & ROUTER]
    shaped = [g for g in groups if len(g.shape) == 2 and set(g.shape) == {count, s.hidden} and count != s.hidden]
    router = next(iter(named or shaped), None)
    if router is None:
        s.ambiguous.append(("router", f"no tensor [{count}, {s.hidden}] is named as one"))
        return set()
    if not named:
        s.notes.append(("router", router.template, f"the only tensor [{count}, {s.hidden}] of a layer"))
    flipped = router.shape[0] == s.hidden != count
    s.rename(router, "layers.{l}.mlp.router", **({"transposed": True} if flipped else {}))
    done.add(router.template)
    for g in groups:
        if g.shape != (count,) or g.template in done:
            continue
        if g.kind == "bias" and g.stem == router.stem:
            s.router_bias = True
            s.rename(g, "layers.{l}.mlp.router")
        elif g.words & CORRECTION or g.words & ROUTER:
            s.correction = True
            s.matches.append(Match(g.template, "layers.{l}.mlp.router.correction"))
        else:
            continue
        done.add(g.template)
    return done


def _scope(s: Structure, g: Named, experts: list[Named]) -> str:
    if g in experts:
        return "experts"
    if g.words & SHARED:
        return "shared"
    if not s.moe_layers:
        return "dense"
    return "shared" if set(g.layers) & set(s.moe_layers) else "dense"


TARGETS = {"experts": "layers.{l}.mlp.experts.{e}", "shared": "layers.{l}.mlp.shared", "dense": "layers.{l}.mlp"}


def _feed_forward(s: Structure, scope: str, part: Part) -> bool:
    """Name the matrices of one feed-forward. False where it is none."""
    gates = [t for t, g in part.weights.items() if scope == "shared" and 1 in g.shape and s.hidden in g.shape]
    for tail in gates:
        s.shared_gate = True
        s.rename(part.weights.pop(tail), "layers.{l}.mlp.shared_gate")
    shapes = {tail: _of_one(s, scope, g) for tail, g in part.weights.items()}
    if not shapes or any(shape is None or s.hidden not in shape for shape in shapes.values()):
        return False
    roles = _roles(s, scope, {tail: shape for tail, shape in shapes.items() if shape is not None})
    if roles is None:
        return False
    down = next(tail for tail, name in roles.items() if name == "down")
    size = _inner(s, shapes[down] or ())
    gated = "gate" in roles.values() or "gate_up" in roles.values()
    bias = bool(part.biases)
    if scope == "experts":
        s.expert_size, s.gated, s.expert_bias = size, gated, bias
        s.fused = "gate_up" in roles.values()
    elif scope == "shared":
        s.shared_size = size
    else:
        s.dense_size, s.dense_gated, s.dense_bias = size, gated, bias
        s.dense_layers = tuple(sorted({n for g in part.weights.values() for n in g.layers}))
    for tail, name in roles.items():
        natural = _natural(s, shapes[tail] or (), name, size)
        s.saw(scope, natural)
        _match(s, scope, part.weights[tail], name, natural)
        if tail in part.biases:
            _match(s, scope, part.biases[tail], name, True)
    return all(tail in roles for tail in part.biases)


def _of_one(s: Structure, scope: str, g: Named) -> Shape | None:
    """The shape of one expert's matrix."""
    if scope != "experts" or g.experts:
        return g.shape if len(g.shape) == 2 else None
    if len(g.shape) == 3:
        return g.shape[1:]
    if len(g.shape) == 2 and s.num_experts and g.shape[0] % s.num_experts == 0:
        return (g.shape[0] // s.num_experts, g.shape[1])
    return None


def _roles(s: Structure, scope: str, shapes: dict[str, Shape]) -> dict[str, str] | None:
    """Last word of the name -> gate, up, down, or gate_up."""
    sizes = {tail: _inner(s, shape) for tail, shape in shapes.items()}
    if len(shapes) == 2:
        first, second = sorted(shapes, key=lambda tail: sizes[tail])
        if sizes[second] == 2 * sizes[first]:
            return {second: "gate_up", first: "down"}
        found = {tail: name for name, tails in PLAIN.items() for tail in shapes if tail in tails}
        if sorted(found.values()) == ["down", "up"]:
            return found
        a, b = shapes
        up, down = (a, b) if shapes[a] == (sizes[a], s.hidden) else (b, a)
        s.notes.append((f"{scope}: up and down", f"{up} and {down}", "their shapes"))
        return {up: "up", down: "down"}
    if len(shapes) != 3:
        return None
    found = {tail: name for name, tails in GATED.items() for tail in shapes if tail in tails}
    odd = [tail for tail in shapes if list(shapes.values()).count(shapes[tail]) == 1]
    if sorted(found.values()) == ["down", "gate", "up"]:
        down = next(tail for tail, name in found.items() if name == "down")
        if len(odd) != 1 or odd == [down]:
            return found
    down = odd[0] if len(odd) == 1 else [*shapes][-1]
    gate, up = (tail for tail in shapes if tail != down)
    s.names_tell_gate = False
    s.notes.append((f"{scope}: down", down, "its shape" if odd else "it comes last"))
    return {gate: "gate", up: "up", down: "down"}


def _inner(s: Structure, shape: Shape) -> int:
    rows, cols = shape
    return rows if cols == s.hidden else cols


def _natural(s: Structure, shape: Shape, name: str, inner: int) -> bool | None:
    """Whether `[outputs, inputs]` are stored so; None for a square matrix."""
    if shape[0] == shape[1]:
        return None
    outputs = {"down": s.hidden, "gate_up": 2 * inner}.get(name, inner)
    return shape[0] == outputs


def _match(s: Structure, scope: str, g: Named, name: str, natural: bool | None) -> None:
    """A rule for one matrix, or for the two halves of one."""
    options: dict[str, object] = {}
    if scope == "experts" and not g.experts:
        options["stacked"] = "e"
        if len(g.shape) == 2 and g.kind == "weight":
            options["flat"] = True
    if natural is None:
        options["square"] = scope
    elif not natural:
        options["transposed"] = True
    for i, part in enumerate(("gate", "up") if name == "gate_up" else (name,)):
        more = {**options, "part": i, "parts": 2} if name == "gate_up" else options
        s.matches.append(Match(g.template, f"{TARGETS[scope]}.{part}.{g.kind}", tuple(more.items()), part=part))
