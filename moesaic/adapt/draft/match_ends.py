"""Embedding, output projection, and norms. Torch-free."""

import re

from moesaic.adapt.draft.names import Named
from moesaic.adapt.draft.structure import Structure, Values

EMBED = {"embed", "embedding", "embeddings", "wte", "emb", "tok", "token", "word", "vocab"}
HEAD = {"head", "lm", "output", "unembed", "unembedding", "classifier", "logits", "decoder", "out"}
POSITIONS = {"wpe", "position", "positions", "positional", "pos"}
SLOTS = {
    "sandwich": ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm"),
    "ffn_sandwich": ("attention_norm", "ffn_norm", "ffn_post_norm"),
}
NORM = re.compile(r".*norm\d*|ln\d*|ln|rms\d*")
ATTENTION = {"attn", "attention", "self", "sa", "selfattn", "mixer", "mha", "input", "att"}
FEED_FORWARD = {"ffn", "mlp", "moe", "feedforward", "ff", "feed"}
AFTER = {"post", "after", "out"}


def is_norm(group: Named) -> bool:
    """A vector, and its name says so."""
    last = group.where[-2:] if set(group.leaf) <= {"scale", "weight"} else group.where[-1:]
    return len(group.shape) == 1 and any(NORM.fullmatch(word) for word in (*group.leaf, *last))


def match_ends(s: Structure, groups: list[Named], stated: Values) -> list[Named]:
    """What stands before and behind the layers."""
    ends = [g for g in groups if not g.layers]
    tables = [g for g in ends if len(g.shape) == 2 and not g.experts]
    embed = next((g for g in tables if g.words & EMBED and not g.words & (POSITIONS | {"head"})), None)
    if embed is None:
        size = stated.get("vocab_size")
        embed = next((g for g in tables if size in g.shape), None) or max(
            tables, key=lambda g: max(g.shape), default=None
        )
        if embed is not None:
            s.notes.append(("embedding", embed.template, f"the first table with {max(embed.shape)} rows"))
    if embed is None:
        return groups
    s.vocab, s.hidden = embed.shape
    s.rename(embed, "embed")
    done = {embed.template}
    head = next((g for g in tables if g is not embed and g.words & HEAD and s.vocab in g.shape), None)
    head = head or next((g for g in tables if g is not embed and set(g.shape) == set(embed.shape)), None)
    if head is not None:
        s.has_head = True
        options = {"transposed": True} if head.shape != embed.shape else {}
        s.rename(head, "lm_head", **options)
        done.add(head.template)
    for g in ends:
        if g.template in done:
            continue
        if len(g.shape) == 2 and g.words & POSITIONS and g.shape[1] == s.hidden:
            s.learned_positions = g.shape[0]
            s.rename(g, "positions")
        elif head is not None and g.kind == "bias" and g.stem == head.stem:
            s.head_bias = True
            s.rename(g, "lm_head")
        elif g.shape == (s.hidden,):
            s.rename(g, "norm")
            s.norm_bias |= g.kind == "bias"
        else:
            continue
        done.add(g.template)
    return [g for g in groups if g.template not in done]


def match_norms(s: Structure, groups: list[Named]) -> list[Named]:
    """The layers' norms: which stands where is told by how many there are, and their names."""
    norms = [g for g in groups if g.layers and g.shape == (s.hidden,) and is_norm(g) and not _of_heads(g)]
    stems = list(dict.fromkeys(g.stem for g in norms if g.kind == "weight"))
    places = _places(s, [next(g for g in norms if g.stem == stem) for stem in stems])
    of_stem = dict(zip(stems, places, strict=True))
    for g in norms:
        if g.stem in of_stem:
            s.rename(g, f"layers.{{l}}.{of_stem[g.stem]}")
            s.norm_bias |= g.kind == "bias"
    done = {g.template for g in norms if g.stem in of_stem}
    return [g for g in groups if g.template not in done]


def _of_heads(group: Named) -> bool:
    """A norm of queries or keys, which may be as long as the hidden size."""
    words = {*group.leaf, *(group.where[-1:] if len(group.leaf) <= 1 else ())}
    return bool(words & {"q", "k", "query", "key", "qnorm", "knorm"})


def _places(s: Structure, norms: list[Named]) -> list[str]:
    """Where each of the layers' norms stands."""
    if len(norms) == 1:
        s.norms = "parallel"
        s.notes.append(("norms", "attention and feed-forward side by side", f"{norms[0].template} is the only one"))
        return ["attention_norm"]
    kinds = [(_after(g), _part(g)) for g in norms]
    if len(norms) == 2:
        if all(after for after, _ in kinds) and {part for _, part in kinds} == {"attention", "ffn"}:
            s.norms = "post"
            return [f"{part}_post_norm" for _, part in kinds]
        # With two, the one called "post attention" stands before the feed-forward.
        if kinds[0][0] and not kinds[1][0]:
            return ["ffn_norm", "attention_norm"]
        if kinds[0][1] == "ffn" and kinds[1][1] == "attention" and not kinds[1][0]:
            return ["ffn_norm", "attention_norm"]
        if kinds[0][1] is None and kinds[1][1] is None and not (_number(norms[0]) or kinds[1][0]):
            s.notes.append(("norms", f"{norms[0].template} before attention", "it comes first"))
        order = ["attention_norm", "ffn_norm"]
        return order if (_number(norms[0]) or 1) <= (_number(norms[1]) or 2) else order[::-1]
    if len(norms) == 4:
        s.norms = "sandwich"
    elif len(norms) == 3:
        s.norms = "ffn_sandwich"
    slots = SLOTS.get(s.norms, ())
    told = [f"{part}_post_norm" if after else f"{part}_norm" if part else "" for after, part in kinds]
    sure = [
        name if told.count(name) == 1 and (kinds[i][0] or "pre" in norms[i].leaf or "input" in norms[i].leaf) else ""
        for i, name in enumerate(told)
    ]
    left = iter([slot for slot in slots if slot not in sure])
    names = [name or next(left, "") for name in sure]
    if sorted(names) != sorted(slots):
        s.ambiguous.append(("norms", f"{len(norms)} norms a layer, and names that do not say where they stand"))
    elif "" in sure:
        s.notes.append(("norms", ", ".join(names), "the order in which they come"))
    return names


def _part(group: Named) -> str | None:
    words = group.where[-1:] + group.leaf
    if set(words) & {"input"}:
        return "attention"
    if set(words) & (FEED_FORWARD | {"output"}):
        return "ffn"
    return "attention" if set(words) & ATTENTION else None


def _after(group: Named) -> bool:
    return bool(set(group.leaf) & AFTER)


def _number(group: Named) -> int | None:
    found = re.search(r"(\d+)$", "_".join(group.leaf))
    return int(found[1]) if found else None
