"""What tensors tell of a model's sizes, as fields of a config. Torch-free."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from moesaic.adapt.names import Group
from moesaic.adapt.parts import guessed_part
from moesaic.models.aliases import field_of

HEAD_DIMS = (128, 64, 96, 80, 256, 192, 32, 16, 8)  # of models that there are, the most usual first


def measured(groups: Sequence[Group], stated: Iterable[str] = ()) -> dict[str, Any]:
    """Sizes, layers, experts, heads and vocabulary that tensors tell, or make likely: a field of `aliases` -> value.

    Args:
        stated: keys of the config; heads are guessed only where it says nothing of them.
    """
    vectors = Counter(g.shape[0] for g in groups if g.layers and len(g.shape) == 1)
    hidden = vectors.most_common(1)[0][0] if vectors else None
    facts: dict[str, Any] = {"hidden_size": hidden, "max_position_embeddings": 2048}
    facts["num_hidden_layers"] = len({layer for g in groups for layer in g.layers}) or None
    for group in groups:
        part = guessed_part(group.pattern)
        inner = [size for size in group.shape[-2:] if size != hidden]
        if not group.layers and part in ("embedding", "head") and len(group.shape) == 2:
            facts["vocab_size"] = max(group.shape)
        elif (group.experts or (len(group.shape) == 3 and part == "experts")) and len(group.shape) > 1:
            facts["num_experts"] = max(group.experts) + 1 if group.experts else group.shape[0]
            facts["top_k"] = min(2, facts["num_experts"])
            if inner:
                facts["expert_size"] = min(inner[0], facts.get("expert_size", inner[0]))
        elif group.layers and part == "dense" and len(group.shape) == 2 and inner:
            facts["intermediate_size"] = inner[0]
    facts.setdefault("intermediate_size", facts.get("expert_size"))
    if "num_attention_heads" not in map(field_of, stated):
        facts |= _heads(groups)
    return {field: value for field, value in facts.items() if value is not None}


def _heads(groups: Sequence[Group]) -> dict[str, int]:
    """What heads there likely are, of separate projections to queries and keys."""
    rows = {
        part: group.shape[0]
        for part in "qk"
        for group in groups
        if re.search(rf"[._]w?{part}(_proj|_lin|_linear)?\.(weight|kernel)$|\.w{part}$", group.pattern)
        and len(group.shape) == 2
    }
    if len(rows) < 2:
        return {}
    norms = [g.shape[0] for g in groups if re.search(r"q_?(layer)?norm", g.pattern) and len(g.shape) == 1]
    sizes = [size for size in (*norms, *HEAD_DIMS) if not (rows["q"] % size or rows["k"] % size)]
    if not sizes:
        return {}
    head_dim = sizes[0] if sizes[0] < rows["q"] else sizes[-1]
    heads = {"num_attention_heads": rows["q"] // head_dim, "num_key_value_heads": rows["k"] // head_dim}
    return {**heads, "head_dim": head_dim}
