"""What a checkpoint's tensors are, by their names, shapes and neighbours, in the words of the decoder. Torch-free."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.adapt.draft.names import Named, read_names
from moesaic.adapt.names import Group
from moesaic.models.aliases import split_words


@dataclass(frozen=True)
class Match:
    """A group of tensors is this parameter: what a weight rule says.

    Attributes:
        source, target: templates.
        options: of `weights.rules.Rule`.
        part: what it is among those that are written as one: gate, up, down, q, k, v.
    """

    source: str
    target: str
    options: tuple[tuple[str, Any], ...] = ()
    part: str = ""


@dataclass
class Structure:
    """All that names and shapes tell.

    Attributes:
        matches: which tensors are which parameters.
        unmatched: groups that nothing here recognises.
        foreign: groups of such parts as `by_hand` names.
        ignored: template -> why it is not needed.
        by_hand: parts that no draft describes: what they are, and what shows it.
        notes: (subject, what was taken for it, what shows it) where a name alone did not tell.
        ambiguous: subjects of which neither names nor shapes tell enough.
    """

    groups: list[Named]
    hidden: int = 0
    vocab: int = 0
    num_layers: int = 0
    matches: list[Match] = field(default_factory=list)
    unmatched: list[Named] = field(default_factory=list)
    foreign: list[Named] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    by_hand: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    ambiguous: list[tuple[str, str]] = field(default_factory=list)
    # ends
    has_head: bool = False
    head_bias: bool = False
    learned_positions: int = 0
    # norms
    norm_bias: bool = False
    norms: str = "pre"
    # attention
    attention: str = "gqa"  # or "owned": experts have projections of their own
    q_size: int = 0
    k_size: int = 0
    v_size: int = 0
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: str | None = None
    qk_norm_size: int = 0
    sinks: int = 0
    packed: bool = False  # queries, keys and values in one tensor
    attention_experts: int = 0
    # feed-forwards
    moe_layers: tuple[int, ...] = ()
    num_experts: int = 0
    expert_size: int = 0
    gated: bool = True
    expert_bias: bool = False
    router_bias: bool = False
    correction: bool = False
    shared_size: int = 0
    shared_gate: bool = False
    dense_layers: tuple[int, ...] = ()
    dense_size: int = 0
    dense_gated: bool = True
    dense_bias: bool = False
    fused: bool = False
    names_tell_gate: bool = True
    seen: list[tuple[str, bool]] = field(default_factory=list)  # (which part, stored transposed), of oblong matrices

    def transposed(self, part: str) -> bool | None:
        """How square matrices of a part are stored: as oblong ones of it are, or else as others are; None where all
        are square."""
        near = [flipped for where, flipped in self.seen if where == part]
        votes = near or [flipped for _, flipped in self.seen]
        return 2 * sum(votes) > len(votes) if votes else None

    def saw(self, part: str, natural: bool | None) -> None:
        """A matrix of a part is stored so: as `[outputs, inputs]`, or transposed, or it is square."""
        if natural is not None:
            self.seen.append((part, not natural))

    def rename(self, group: Named, target: str, **options: Any) -> None:
        """A group is parameter `target`, without its kind."""
        self.matches.append(Match(group.template, f"{target}.{group.kind}", tuple(options.items())))


Values = Mapping[str, Any]  # field -> what the config says of it


def read_structure(groups: Iterable[Group], stated: Values) -> Structure:
    """What the tensors are.

    Args:
        groups: by names that differ in numbers alone.
        stated: what the config says of sizes, which decides where shapes leave a choice.
    """
    from moesaic.adapt.draft.match_attention import match_attention
    from moesaic.adapt.draft.match_ends import match_ends, match_norms
    from moesaic.adapt.draft.match_feed_forward import match_feed_forward

    s = Structure(read_names(groups))
    s.num_layers = 1 + max((layer for g in s.groups for layer in g.layers), default=-1)
    rest = _set_aside(s, s.groups)
    rest = match_ends(s, rest, stated)
    rest = match_norms(s, rest)
    rest = match_attention(s, rest, stated)
    rest = match_feed_forward(s, rest, stated)
    lost = {m.source for m in s.matches if not _placed(m)}  # a number in the name that no parameter's name has
    s.matches = [m for m in s.matches if m.source not in lost]
    s.unmatched += rest + [g for g in s.groups if g.template in lost]
    return s


def _placed(match: Match) -> bool:
    """Whether the source of each parameter is known: its variables stand in the parameter's name."""
    return set(VARIABLE.findall(match.source)) <= set(VARIABLE.findall(match.target))


VARIABLE = re.compile(r"\{(\w*)\}")
SENSES = {"vision", "visual", "image", "audio", "multi", "projector", "speech"}
BUFFERS = {"inv", "freq", "freqs", "cis", "masked", "mask", "causal", "rotary", "rope"}
FOREIGN = {  # words, or a pair of words, that show a part which has more to it than projections
    "latent attention": ("kv_a", "kv_b", "q_a", "q_b", "lora", "mqa"),
    "a recurrent layer": ("a_log", "dt", "conv1d", "ssm", "mamba", "delta", "in_proj_qkvz", "in_proj_ba"),
    "a sparse indexer": ("indexer",),
}


def _set_aside(s: Structure, groups: Iterable[Named]) -> list[Named]:
    """Groups that need no parameter, and those that need code, are noted; the others are returned."""
    rest = []
    for group in groups:
        beside = next((i for i, part in enumerate(group.template.split(".")) if set(split_words(part)) & SENSES), None)
        if beside is not None:
            prefix = ".".join(group.template.split(".")[: beside + 1])
            s.ignored[f"{prefix}.{{any}}"] = "of a part that text does not need"
            continue
        if len(group.shape) != 2 and {*group.leaf, *group.where[-1:]} & BUFFERS:
            s.ignored[group.template] = "a buffer, computed here"
            continue
        flat = "_".join((*group.where[-2:], *group.leaf))
        words = group.words | {f"{a}_{b}" for a, b in zip((*group.where, *group.leaf), group.leaf, strict=False)}
        pairs = {f"{a}_{b}" for a, b in zip(group.leaf, group.leaf[1:], strict=False)}
        kind = next((k for k, marks in FOREIGN.items() if (words | pairs | {flat}) & set(marks)), None)
        if kind is None:
            rest.append(group)
            continue
        s.foreign.append(group)
        if kind not in [k for k, _ in s.by_hand]:
            s.by_hand.append((kind, group.template))
    return rest
