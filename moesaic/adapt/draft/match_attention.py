"""Queries, keys, values, outputs, and what belongs to them. Torch-free."""

from typing import Any

from moesaic.adapt.draft.match_ends import FEED_FORWARD, is_norm
from moesaic.adapt.draft.names import Named
from moesaic.adapt.draft.structure import Match, Structure, Values

NAMES = {
    "q": {"q", "wq", "query", "queries", "qproj"},
    "k": {"k", "wk", "key", "keys", "kproj"},
    "v": {"v", "wv", "value", "values", "vproj"},
    "o": {"o", "wo", "out", "output", "oproj", "c_proj", "proj", "dense", "linear"},
    "qkv": {"qkv", "wqkv", "query_key_value", "attn", "pack", "in", "q_k_v"},
    "kv": {"kv", "wkv", "key_value", "k_v"},
}
SCOPE = {"attn", "attention", "self", "sa", "selfattn", "mixer", "mha", "att"}
ROUTER = {"router", "gate", "gating", "wg", "switch", "selector", "routing"}


def role(group: Named, in_scope: bool) -> str | None:
    """Which projection a name means; words such as `out` only within attention."""
    if not in_scope and group.words & FEED_FORWARD:
        return None
    for name, tails in NAMES.items():
        if group.tail in tails and (in_scope or name in ("q", "k", "v", "qkv", "kv") or group.tail == "wo"):
            return name
    return None


def match_attention(s: Structure, groups: list[Named], stated: Values) -> list[Named]:
    """All that attention consists of; the groups left over are returned."""
    layers = [g for g in groups if g.layers]
    owned = [g for g in layers if g.experts and role(g, True) in ("q", "k", "v", "o")]
    owned = owned if {role(g, True) for g in owned} >= {"q", "k"} else []
    done: set[str] = set()
    if owned:
        done |= _owned(s, layers, owned)
    common = [g for g in layers if not g.experts and g.template not in done]
    done |= _norms_and_sinks(s, common)
    found: dict[str, list[Named]] = {}
    for g in common:
        kind = None if g.template in done else role(g, bool(set(g.where) & SCOPE))
        if kind is not None and len(g.shape) == (2 if g.kind == "weight" else 1):
            found.setdefault(kind, []).append(g)
    done |= {g.template for members in found.values() for g in members}
    for kind, members in found.items():
        for g in members:
            _project(s, g, kind, stated)
    return [g for g in groups if g.template not in done]


def _owned(s: Structure, layers: list[Named], owned: list[Named]) -> set[str]:
    """Attention whose experts have projections of their own, and its router."""
    s.attention = "owned"
    s.attention_experts = len({e for g in owned for e in g.experts})
    sizes = {role(g, True): g for g in owned if g.kind == "weight"}
    for name, g in sizes.items():
        natural, size = _natural(s, g, "o" if name == "o" else "q")
        if name in ("q", "k", "v"):
            setattr(s, f"{name}_size", size)
        s.saw("attention", natural)
    for g in owned:
        name = role(g, True)
        options = _stored(_natural(s, g, name or "")[0]) if g.kind == "weight" else {}
        target = f"layers.{{l}}.attention.experts.{{e}}.{name}.{g.kind}"
        s.matches.append(Match(g.template, target, tuple(options.items()), part=name or ""))
        s.qkv_bias |= g.kind == "bias" and name != "o"
        s.output_bias |= g.kind == "bias" and name == "o"
    shape = {s.attention_experts, s.hidden}
    routers = [g for g in layers if len(g.shape) == 2 and set(g.shape) == shape and g.words & ROUTER]
    router = next((g for g in routers if g.words & SCOPE), None) or (routers[0] if len(routers) == 1 else None)
    done = {g.template for g in owned}
    if router is not None:
        flipped = router.shape[0] == s.hidden != s.attention_experts
        s.rename(router, "layers.{l}.attention.router", **({"transposed": True} if flipped else {}))
        done.add(router.template)
    else:
        s.ambiguous.append(("attention's router", f"no tensor [{s.attention_experts}, {s.hidden}] is named as one"))
    return done


def _norms_and_sinks(s: Structure, groups: list[Named]) -> set[str]:
    done = set()
    for g in groups:
        if len(g.shape) != 1:
            continue
        if {"sink", "sinks"} & g.words:
            s.sinks = g.shape[0]
            s.matches.append(Match(g.template, "layers.{l}.attention.sinks"))
            done.add(g.template)
            continue
        words = {*g.leaf, *g.where[-1:]}
        which = "q" if words & {"q", "query", "qnorm"} else "k" if words & {"k", "key", "knorm"} else None
        if is_norm(g) and which is not None:
            s.rename(g, f"layers.{{l}}.attention.{which}_norm")
            s.qk_norm = "head"  # or "full", which the number of heads tells
            s.qk_norm_size = g.shape[0] if which == "q" else s.qk_norm_size
            done.add(g.template)
    return done


def _project(s: Structure, g: Named, kind: str, stated: Values) -> None:
    """One projection, or several in one tensor."""
    if g.kind == "bias":
        s.qkv_bias |= kind != "o"
        s.output_bias |= kind == "o"
        _match(s, g, kind, {})
        return
    natural, size = _natural(s, g, kind)
    s.saw("attention", natural)
    options = _stored(natural)
    if kind == "qkv":
        s.packed = True
        heads, kv = stated.get("num_attention_heads"), stated.get("num_key_value_heads")
        each = size // (heads + 2 * kv) if heads and kv else size // 3
        s.q_size = each * heads if heads and kv else size // 3
        s.k_size = s.v_size = (size - s.q_size) // 2
    elif kind == "kv":
        s.k_size = s.v_size = size // 2
    elif kind in ("q", "k", "v"):
        setattr(s, f"{kind}_size", size)
    if options.get("transposed") and kind in ("qkv", "kv"):
        s.ambiguous.append(("packed projections", f"{g.template} is packed and transposed"))
    _match(s, g, kind, options)


def _match(s: Structure, g: Named, kind: str, options: dict[str, Any]) -> None:
    for part in kind if kind in ("qkv", "kv") else (kind,):
        more = {**options, "packed": kind} if len(kind) > 1 else options
        s.matches.append(Match(g.template, f"layers.{{l}}.attention.{part}.{g.kind}", tuple(more.items()), part=part))


def _stored(natural: bool | None) -> dict[str, Any]:
    """Options of a rule for a matrix that is stored so."""
    return {"square": "attention"} if natural is None else {} if natural else {"transposed": True}


def _natural(s: Structure, g: Named, kind: str) -> tuple[bool | None, int]:
    """Whether `[outputs, inputs]` are stored so, None for a square matrix; and the size that is not the hidden one."""
    rows, cols = g.shape
    if rows == cols:
        return None, rows
    if kind == "o":
        return rows == s.hidden, cols if rows == s.hidden else rows
    return cols == s.hidden, rows if cols == s.hidden else cols
