"""Routers and feed-forwards of a drafted `spec`, as Python."""

from collections.abc import Mapping
from typing import Any

from moesaic.adapt.draft.code import Code, call, keywords, literal
from moesaic.adapt.draft.questions import ROUTERS
from moesaic.adapt.draft.spec_keys import Writer
from moesaic.models.common import ACTIVATIONS


def write_feed_forwards(w: Writer) -> list[list[str]]:
    s = w.s
    act = w.choice("activation")
    acts: dict[str, Any] = {} if act in (None, "silu") else {"activation": act}
    stated = w.f.values.get("hidden_act")
    parts = [w.guess("activation")]
    if act not in (None, "silu") and isinstance(stated, str) and ACTIVATIONS.get(stated) == act:
        w.used["common"].add("activation")
        path = w.f.paths["hidden_act"]
        key = f", {literal(path[-1])}" if path[-1] != "hidden_act" else ""
        parts[0].append(f"    act = activation({w.reader(path)}{key})")
        acts = {"activation": Code("act")}
        w.read.add("hidden_act")
    w.pin("hidden_act", f"experts compute {act}" if act not in (None, "silu") else "")
    if s.num_experts:
        parts.append(_moe(w, acts))
    if s.dense_size:
        w.used["spec"].add("DenseSpec")
        size = w.size("intermediate_size", s.dense_size)
        values = {"intermediate_size": size, **acts}
        if s.dense_bias:
            values["bias"] = True
        if not s.dense_gated:
            values["gated"] = False
        parts.append(call("dense = DenseSpec", keywords(**values), indent=4))
    w.pin("mlp_bias")
    return parts


def _moe(w: Writer, acts: dict[str, Any]) -> list[str]:
    s = w.s
    w.used["spec"].add("MoESpec")
    lines = w.guess("router", "top-k") if s.attention != "owned" else []
    lines += w.guess("gate and up", "halves of fused experts")
    values: dict[str, Any] = {
        "num_experts": w.size("num_experts", s.num_experts),
        "intermediate_size": _expert_size(w),
        "router": router(w),
        **acts,
    }
    if not s.gated:
        values["gated"] = False
    if s.expert_bias:
        values["bias"] = True
    for field, argument in {"swiglu_alpha": "alpha", "swiglu_limit": "limit"}.items():
        if field in w.f.paths:
            values[argument] = w.value(field, "float")
    if s.shared_size:
        values["shared"] = _shared(w, acts)
    for field in ("shared_size", "num_shared", "shared_gated"):
        w.pin(field)
    return lines + call("moe = MoESpec", keywords(**values), indent=4)


def _expert_size(w: Writer) -> Code:
    size = w.size("expert_size", w.s.expert_size)
    if size == str(w.s.expert_size) and not w.s.dense_size:
        size = w.size("intermediate_size", w.s.expert_size)
    return size


def _shared(w: Writer, acts: dict[str, Any]) -> Code:
    s, stated = w.s, w.f.values
    count, own = stated.get("num_shared"), stated.get("shared_size")
    size: Code | None = None
    if isinstance(count, int) and count * s.expert_size == s.shared_size and own is None:
        size = _expert_size(w)
    elif isinstance(count, int) and isinstance(own, int) and count * own == s.shared_size != own:
        size = w.value("shared_size", "int")
    if size is not None and not s.shared_gate:
        w.used["common"].add("shared_experts")
        more = (
            [acts["activation"] if isinstance(acts["activation"], Code) else literal(acts["activation"])]
            if acts
            else []
        )
        return Code(f"shared_experts({', '.join([size, str(w.value('num_shared', 'int')), *more])})")
    w.used["spec"] |= {"SharedSpec", "DenseSpec"}
    size = w.size("shared_size", s.shared_size)
    ffn = f"DenseSpec({', '.join(keywords(intermediate_size=size, **acts))})"
    return Code(f"SharedSpec(ffn={ffn}{', gate=True' if s.shared_gate else ''})")


def router(w: Writer) -> Code:
    """RouterSpec(...)."""
    s = w.s
    w.used["spec"].add("RouterSpec")
    top_k = w.value("top_k", "int") or Code(str(w.choice("top-k")))
    kind = dict(ROUTERS[w.choice("router")])
    stated = w.f.values.get("renormalize")
    if isinstance(stated, bool) and kind.get("renormalize", False) is stated:
        kind["renormalize"] = w.value("renormalize", "bool")
    w.pin("renormalize")
    w.pin("scoring", f"{w.choice('router')}")
    values: dict[str, Any] = {"top_k": top_k, **kind}
    if kind.get("scoring") == "sparsemixer" and "jitter" in w.f.paths:
        values["jitter"] = w.value("jitter", "float")
    w.drop("jitter", "noise of training")
    if s.router_bias:
        values["bias"] = True
    if s.correction:
        values["correction"] = True
    for field, argument in {"num_groups": "num_groups", "top_groups": "top_groups"}.items():
        if (w.f.values.get(field) or 1) != 1 or (w.f.values.get("num_groups") or 1) != 1:
            values[argument] = w.value(field, "int")
        w.pin(field)
    if "scale" in w.f.paths:
        values["scale"] = w.value("scale", "float")
    return Code("\n".join(call("RouterSpec", keywords(**values), indent=0)) if _fits(values) else _broken(values))


def _fits(values: Mapping[str, Any]) -> bool:
    return len("        router=RouterSpec(),") + sum(len(k) + 3 + len(str(v)) for k, v in values.items()) < 112


def _broken(values: Mapping[str, Any]) -> str:
    return "RouterSpec(\n" + "".join(f"    {argument},\n" for argument in keywords(**values)) + ")"
