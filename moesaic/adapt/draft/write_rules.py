"""The weight rules of a draft, as Python."""

from collections.abc import Mapping
from typing import Any

from moesaic.adapt.draft.code import call, keywords, literal
from moesaic.adapt.draft.structure import Match, Structure

EXPERT = "layers.{l}.mlp.experts.{e}"
PAIRS = {"weight", "bias"}


def write_rules(s: Structure, choices: Mapping[str, Any], used: set[str]) -> list[str]:
    """The lines of `RULES`; `used` gets the names of `moesaic.weights.rules` that they call."""
    matches = [_settled(s, match, choices) for match in s.matches]
    lines: list[str] = []
    done: set[int] = set()
    for i, match in enumerate(matches):
        if i in done:
            continue
        several = _several(matches, match, s, choices)
        if several is not None:
            members, name, arguments = several
            done |= {j for j, other in enumerate(matches) if other in members}
            used.add(name)
            lines += call(f"*{name}", arguments, ",", 4)
            continue
        pair = _pair(matches, match)
        if pair is not None:
            done.add(matches.index(pair))
            match = _joined(match)
        lines += _rule(match, used)
    head = next((m.source for m in matches if m.target == "lm_head.weight"), None)
    if s.has_head and head is not None:
        used.add("tied")
        lines += call("tied", [literal(head), literal("embed.weight")], ",", 4)
    for template, why in s.ignored.items():
        used.add("ignore")
        lines += call("ignore", [literal(template), literal(why)], ",", 4)
    return ["RULES = [", *lines, "]"]


def _rule(match: Match, used: set[str]) -> list[str]:
    arguments = [literal(match.source), literal(match.target)]
    name = "Rule" if match.options else "rename"
    used.add(name)
    return call(name, [*arguments, *keywords(**dict(match.options))], ",", 4)


def _settled(s: Structure, match: Match, choices: Mapping[str, Any]) -> Match:
    """The match as the choices have it."""
    options, target, part = dict(match.options), match.target, match.part
    square = options.pop("square", None)
    if square is not None and choices[f"square matrices of {square}"] == "transposed" and target.endswith(".weight"):
        options["transposed"] = True
    if choices.get("gate and up") == "up first" and part in ("gate", "up") and "parts" not in options:
        part = {"gate": "up", "up": "gate"}[part]
        target = target.replace(f".{match.part}.", f".{part}.")
    if options.get("parts") == 2 and part in ("gate", "up"):
        halves = choices.get("halves of fused experts")
        if halves == "rows in turn":
            options["interleaved"] = True
        elif halves == "up, then gate":
            options["part"] = 1 - options["part"]
    packed = options.pop("packed", None)
    if packed == "kv":
        options.update(part="kv".index(part), parts=2)
    elif packed == "qkv" and choices.get("packed queries, keys and values") == "by group of heads":
        each = _head(s, choices)
        group = s.q_size // s.k_size
        first, count = {"q": (0, group), "k": (group, 1), "v": (group + 1, 1)}[part]
        options["turns"] = (first * each, count * each, (group + 2) * each)
    elif packed == "qkv":
        names = {"q": (), "k": ("q",), "v": ("q", "k")}[part]
        kind = target.rpartition(".")[2]
        options["after"] = tuple(f"layers.{{l}}.attention.{name}.{kind}" for name in names)
    return Match(match.source, target, tuple(options.items()), part)


def _head(s: Structure, choices: Mapping[str, Any]) -> int:
    return int(choices["head's size"])


def _pair(matches: list[Match], match: Match) -> Match | None:
    """The bias of a weight (or the weight of a bias) that the same rule can be about."""
    stem, _, kind = match.source.rpartition(".")
    if kind not in PAIRS or not match.target.endswith(f".{kind}") or match.options:
        return None
    [other] = PAIRS - {kind}
    wanted = Match(f"{stem}.{other}", f"{match.target.rpartition('.')[0]}.{other}", (), match.part)
    return wanted if wanted in matches else None


def _joined(match: Match) -> Match:
    return Match(f"{match.source.rpartition('.')[0]}.{{p}}", f"{match.target.rpartition('.')[0]}.{{p}}", (), match.part)


def _several(
    matches: list[Match], match: Match, s: Structure, choices: Mapping[str, Any]
) -> tuple[list[Match], str, list[str]] | None:
    """Those that one call writes, what it is called, and its arguments."""
    options = dict(match.options)
    if "after" in options and options["after"] == ():
        members = [m for m in matches if m.source == match.source]
        return members, "packed", [literal(match.source), *(literal(m.target) for m in members)]
    if not match.target.startswith(EXPERT):
        return None
    kind = match.target.rpartition(".")[2]
    members = [m for m in matches if m.target.startswith(EXPERT) and m.target.endswith(f".{kind}")]
    parts = {m.part: m for m in members}
    if sorted(parts) != ["down", "gate", "up"]:
        return None
    if s.fused:
        return _fused(parts, members, kind)
    prefix = {m.source.rpartition(".")[0].rpartition(".")[0] for m in members}
    plain = kind == "weight" and len(prefix) == 1 and all(m.source.endswith(".weight") for m in members)
    if not plain or any(m.options for m in members):
        return None
    names = {name: parts[name].source.split(".")[-2] for name in ("gate", "up", "down")}
    return members, "experts", [literal(prefix.pop()), *keywords(**names)]


def _fused(parts: Mapping[str, Match], members: list[Match], kind: str) -> tuple[list[Match], str, list[str]] | None:
    gate, down = dict(parts["gate"].options), dict(parts["down"].options)
    transposed = bool(gate.get("transposed"))
    if gate.get("part") or gate.get("flat") or bool(down.get("transposed")) != transposed or "stacked" not in gate:
        return None
    more: dict[str, Any] = {}
    if gate.get("interleaved"):
        more["interleaved"] = True
    if transposed:
        more["transposed"] = True
    if kind != "weight":
        more["kind"] = kind
    sources = [literal(parts["gate"].source), literal(parts["down"].source)]
    return members, "fused_experts", [*sources, *keywords(**more)]
