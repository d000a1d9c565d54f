"""Attention of a drafted `spec`, as Python."""

from typing import Any

from moesaic.adapt.draft.code import Code, call, keywords
from moesaic.adapt.draft.spec_feed_forward import router
from moesaic.adapt.draft.spec_keys import Writer


def _rope(w: Writer) -> Code | None:
    style = w.choice("rotary positions")
    w.pin("rope_interleaved", f"{style} of a head are turned against each other")
    w.pin("positions_kind")
    return None if style == "none" else Code("True" if style == "pairs" else "False")


def write_attention(w: Writer) -> list[str]:
    s = w.s
    lines = w.guess("rotary positions", "norm of queries and keys", "head's size")
    if s.by_hand:
        w.used.setdefault("errors", set()).add("UnsupportedError")
        what = ", ".join(kind for kind, _ in s.by_hand)
        return [*lines, *call("raise UnsupportedError", [f'f"{{c.path}}: {what} is to be written here"'], indent=4)]
    interleaved = _rope(w)
    if s.attention == "owned":
        return [*lines, *_owned(w, interleaved)]
    more: dict[str, Any] = {}
    stated = w.f.values.get("attention_bias")
    if s.qkv_bias or s.output_bias or stated is not None:
        bias = w.value("attention_bias", "bool") if stated is s.qkv_bias else None
        more["bias"] = bias or s.qkv_bias
        if s.output_bias != s.qkv_bias or bias is not None:
            more["output_bias"] = s.output_bias
    if s.qk_norm:
        more["qk_norm"] = s.qk_norm
        if w.choice("norm of queries and keys") == "after rotation":
            more["qk_norm_last"] = True
    if s.sinks:
        more["sinks"] = True
    if interleaved is None:
        more["rotary"] = False
    elif interleaved == "True":
        more["interleaved"] = True
    given = w.f.plain.get("rope_parameters")
    if "partial_rotary" in w.f.paths or (isinstance(given, dict) and "partial_rotary_factor" in given):
        more["partial_rotary"] = 1.0
    for name, argument in {"attention_multiplier": "scale", "attention_softcap": "softcap"}.items():
        if name in w.f.paths:
            more[argument] = w.value(name, "float")
    if "clip_qkv" in w.f.paths:
        more["clip_qkv"] = w.value("clip_qkv", "float | None")
    w.pin("use_qk_norm")
    lines += _windows(w, more)
    w.used["common"].add("gqa")
    return [*lines, *call("attention = gqa", ["c", *keywords(**more)], indent=4)]


def _windows(w: Writer, more: dict[str, Any]) -> list[str]:
    """Which layers have a window: in `more` where all have it, else in the list `sizes`."""
    lines = w.guess("window")
    size: Any = Code("None")
    if w.f.values.get("use_window") is False:
        w.drop("sliding_window", "not used, as the config says")
        w.pins.append((w.f.paths["use_window"], False, ""))
        w.read.add("use_window")
    else:
        w.pin("use_window")
        if "layer_types" in w.f.plain or w.choice("window") not in (None, "no layer"):
            size = w.value("sliding_window", "int | None") or size
    if "layer_types" in w.f.plain:
        w.used["common"].add("windows")
        w.used.setdefault("dataclasses", set()).add("replace")
        return [*lines, f"    sizes = windows(c, {size}, sliding=lambda layer: False)"]
    which = w.choice("window")
    if which == "all layers":
        more["window"] = size
    elif which == "no layer":
        w.drop("sliding_window", "no layer has it")
    elif which is not None:
        w.used.setdefault("dataclasses", set()).add("replace")
        rest = 0 if which == "even layers" else 1
        lines.append(f"    sizes = [{size} if layer % 2 == {rest} else None for layer in range(num_layers(c))]")
    w.pin("sliding_window")
    return lines


def _owned(w: Writer, interleaved: Code | None) -> list[str]:
    s, head = w.s, w.head_size()
    w.used["spec"] |= {"ExpertPagedAttentionSpec", "RouterSpec"}
    parts = {m.part for m in s.matches if m.target.startswith("layers.{l}.attention.experts")}
    lines = w.guess("router", "top-k")
    values: dict[str, Any] = {
        "num_experts": w.size("num_experts", s.attention_experts),
        "router": router(w),
        "num_heads": Code('c.require(int, "num_attention_heads")'),
        "num_kv_heads": Code(
            'c.require(int, "num_key_value_heads")' if s.k_size != s.q_size else str(s.k_size // head)
        ),
        "head_dim": Code(str(head)),
        "scale": Code(f"{head}**-0.5"),
        "rope": None,
    }
    if "num_key_value_heads" in w.f.paths:
        values["num_kv_heads"] = Code('c.require(int, "num_key_value_heads")')
    if "head_dim" in w.f.paths:
        values["head_dim"] = Code('c.require(int, "head_dim")')
    if interleaved is not None:
        w.used["common"].add("rope")
        turned = ", interleaved=True" if interleaved == "True" else ""
        values["rope"] = Code(f"rope(c, {values['head_dim']}{turned})")
    if parts == {"q", "k"}:
        values["owned"] = "qk"
    if s.qkv_bias:
        values["qkv_bias"] = True
    if s.output_bias:
        values["output_bias"] = True
    w.pin("attention_bias")
    return [*lines, *call("attention = ExpertPagedAttentionSpec", keywords(**values), indent=4)]
