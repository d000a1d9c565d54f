"""The `spec` function of a draft, as Python."""

from typing import Any

from moesaic.adapt.draft.code import Code, call, comment, keywords, literal
from moesaic.adapt.draft.spec_attention import write_attention
from moesaic.adapt.draft.spec_feed_forward import write_feed_forwards
from moesaic.adapt.draft.spec_keys import Writer


def write_spec(w: Writer) -> list[str]:
    """The lines of the function."""
    parts = [write_attention(w), *write_feed_forwards(w)]
    end = _model(w)
    head = [*w.usual_keys(), *w.rest()]
    objects = [f"    {variable} = c.child({literal(key)}, metadata=True)" for key, variable in w.objects.items()]
    inside = w.inside()
    lines = [line for part in parts for line in part]
    doc = '    """What the model computes."""'
    whole = [*inside, *objects, *head, *lines, *end]
    if not any("num_layers(" in line for line in whole):
        w.used["common"].discard("num_layers")
    return ["def spec(c: ConfigReader) -> ModelSpec:", doc, *whole]


def _model(w: Writer) -> list[str]:
    """The layers and what stands around them."""
    s = w.s
    lines = w.guess("kind of norm", "norm's epsilon" if "rms_norm_eps" in w.f.values else "")
    lines += w.guess("added to norms' weights")
    w.pin("norm_kind")
    layers, before = _layers(w)
    more: dict[str, Any] = {}
    scales = {"embedding_multiplier": "embedding", "residual_multiplier": "residual"}
    factors: dict[str, Any] = {a: w.value(n, "float") for n, a in scales.items() if n in w.f.paths}
    if "logits_scaling" in w.f.paths:
        factors["logits"] = Code(f"1.0 / {w.value('logits_scaling', 'float')}")
    if factors:
        w.used["spec"].add("Multipliers")
        more["multipliers"] = Code("\n".join(call("Multipliers", keywords(**factors), indent=0)))
    kind, offset = w.choice("kind of norm"), w.choice("added to norms' weights")
    if kind == "layer" or offset:
        w.used["spec"].add("NormSpec")
        norm = {
            "eps": Code('c.require(float, "rms_norm_eps")'),
            "kind": kind,
            "offset": offset,
            "bias": s.norm_bias,
        }
        more["norm"] = Code(f"NormSpec({', '.join(keywords(**{k: v for k, v in norm.items() if v}))})")
    if not s.has_head and "tie_word_embeddings" not in w.f.paths:
        more["tied"] = True
    if s.head_bias:
        more["logits_bias"] = True
    w.pin("head_bias")
    if s.learned_positions:
        more["learned_positions"] = True
    if "logits_softcap" in w.f.paths:
        more["logits_softcap"] = w.value("logits_softcap", "float | None")
    return [*lines, *before, *call("return decoder", ["c", layers, *keywords(**more)], indent=4)]


def _layers(w: Writer) -> tuple[str, list[str]]:
    s = w.s
    windowed = "replace" in w.used.get("dataclasses", ())
    attention = "replace(attention, window=window)" if windowed else "attention"
    ffn = "moe" if s.num_experts else "dense" if s.dense_size else "None"
    mixed = bool(s.num_experts and s.dense_size)
    before: list[str] = []
    if mixed:
        dense = tuple(n for n in range(s.num_layers) if n not in s.moe_layers)
        if dense == tuple(range(len(dense))) and w.f.values.get("first_dense") == len(dense):
            before.append(f"    first = {w.value('first_dense', 'int')}")
            ffn = "dense if layer < first else moe"
        else:
            ffn = f"dense if layer in {literal(dense)} else moe"
            before += comment("which layers are dense: seen in the names", 4)
    w.pin("first_dense")
    norms = "" if s.norms == "pre" else f', norms="{s.norms}"'
    one = f"LayerSpec(attention={attention}, ffn={ffn}{norms})"
    if not mixed and not windowed:
        return f"[{one}] * num_layers(c)", before
    if mixed and windowed:
        loop = "for layer, window in enumerate(sizes)"
    else:
        loop = "for window in sizes" if windowed else "for layer in range(num_layers(c))"
    return "layers", [*before, *_listed(one, loop)]


def _listed(one: str, loop: str) -> list[str]:
    line = f"    layers = [{one} {loop}]"
    return [line] if len(line) <= 120 else ["    layers = [", f"        {one}", f"        {loop}", "    ]"]
