"""What neither names nor shapes tell: what the config states of it, or else a guess, with its evidence. Torch-free."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from moesaic.adapt.draft import peers as known
from moesaic.adapt.draft.fields import Fields
from moesaic.adapt.draft.peers import Peer, vote
from moesaic.adapt.draft.structure import Structure
from moesaic.models.common import ACTIVATIONS
from moesaic.models.spec import ModelSpec

SURE = 0.75  # from this confidence on a guess is no open question


@dataclass(frozen=True)
class Question:
    """Something that has to be known and that the tensors do not tell.

    Attributes:
        name: what is asked.
        choice: what is taken.
        others: what else it could be, the likeliest first.
        evidence: for the choice.
        confidence: from 0 to 1; 1 for what the config states.
        settled: a reference's logits were reproduced with the choice alone.
    """

    name: str
    choice: Any
    others: tuple[Any, ...]
    evidence: str
    confidence: float
    settled: bool = False

    @property
    def open(self) -> bool:
        return not self.settled and self.confidence < SURE

    @property
    def guessed(self) -> bool:
        return not self.settled and self.confidence < 1

    def took(self, choice: Any) -> "Question":
        """The same with another choice."""
        others = tuple(other for other in (self.choice, *self.others) if other != choice)
        return replace(self, choice=choice, others=others)


ROUTERS: dict[str, dict[str, Any]] = {  # what a router does -> its fields, as RouterSpec has them
    "softmax, renormalised": {"renormalize": True},
    "softmax": {},
    "top-k, then softmax": {"order": "select_then_score"},
    "sigmoid, renormalised": {"scoring": "sigmoid", "renormalize": True, "epsilon": 1e-20},
    "sigmoid": {"scoring": "sigmoid"},
    "sparsemixer": {"scoring": "sparsemixer"},
}
TEMPLATES = {"softmax": ("softmax, renormalised", "softmax"), "sigmoid": ("sigmoid, renormalised", "sigmoid")}


def ask(s: Structure, f: Fields, near: list[Peer]) -> list[Question]:
    """All questions about a checkpoint, each answered as well as can be."""
    asked = [_router(s, f, near), _top_k(s, f), *_rope(s, f, near), *_norms(s, f, near), _activation(s, f, near)]
    asked += [*_layouts(s, near), _window(s, f, near), _heads(s, f)]
    return [question for question in asked if question is not None]


def _others(choice: Any, options: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(option for option in dict.fromkeys(options) if option != choice)


def _voted(name: str, near: list[Peer], trait: Callable[[ModelSpec], Any], options: Iterable[Any]) -> Question:
    """What the most alike architectures do."""
    options = tuple(options)
    choice, share, who = vote(near, trait)
    if choice not in options:
        choice, share, who = options[0], 0.3, "it is the usual one"
    return Question(name, choice, _others(choice, options), who, min(0.9, 0.9 * share))


def _router(s: Structure, f: Fields, near: list[Peer]) -> Question | None:
    if not (s.num_experts or s.attention_experts):
        return None
    text = str(f.values.get("scoring", "")).lower().replace("-", "_")
    stated = f.values.get("renormalize")
    shown = [f"{f.paths[k][-1]} = {f.values[k]!r}" for k in ("scoring", "renormalize") if k in f.paths]
    scoring = next((name for name in ("sigmoid", "sparsemixer", "softmax") if name in text), None)
    if scoring is None and "noaux" in text:
        scoring = "sigmoid"
    first_best = any(part in text for part in ("topk_softmax", "top_k_softmax", "topk_then_softmax", "topk_first"))
    if stated is None and "norm" in text:
        stated = True
    if first_best:
        return Question("router", "top-k, then softmax", (), shown[0], 1.0)
    if scoring == "sparsemixer":
        return Question("router", "sparsemixer", (), shown[0], 1.0)
    if scoring in TEMPLATES and stated is not None:
        choice = TEMPLATES[scoring][not stated]
        return Question("router", choice, (), " and ".join(shown), 1.0)
    if scoring in TEMPLATES:
        # With one expert a token, a renormalised softmax would weigh nothing.
        choice, confidence = TEMPLATES[scoring][f.values.get("top_k") == 1], 0.6
        why = f"{shown[0]}, but nothing says whether weights are renormalised"
        return Question("router", choice, _others(choice, (*TEMPLATES[scoring], *ROUTERS)[:4]), why, confidence)
    options = [r for r in ROUTERS if r != "top-k, then softmax"]
    options = [r for r in options if r != "sparsemixer" or f.values.get("top_k") == 2]
    if s.correction:
        options = [r for r in options if r.startswith("sigmoid")] + [r for r in options if not r.startswith("sigmoid")]
    if stated is not None:
        wrong = "renormalised" if not stated else None
        options = [r for r in options if (wrong not in r if wrong else "renormalised" in r)] or options
    voted = _voted("router", near, _router_of, options)
    confidence = voted.confidence if stated is not None else min(voted.confidence, 0.6)
    unsaid = [] if stated is not None else ["the config does not say it"]
    evidence = "; ".join([*shown, *unsaid, voted.evidence])
    return replace(voted, evidence=evidence, confidence=confidence)


def _router_of(spec: ModelSpec) -> str | None:
    moe = known.moe(spec)
    if moe is None:
        return None
    r = moe.router
    if r.scoring == "sparsemixer":
        return "sparsemixer"
    if r.order == "select_then_score" and r.scoring == "softmax":
        return "softmax, renormalised"  # the same but for rounding
    return f"{r.scoring}{', renormalised' if r.renormalize else ''}"


def _top_k(s: Structure, f: Fields) -> Question | None:
    if not (s.num_experts or s.attention_experts) or "top_k" in f.paths:
        return None
    sizes = [k for k in (2, 1, 4, 8, 6, 3) if k <= (s.num_experts or s.attention_experts)]
    return Question("top-k", sizes[0], tuple(sizes[1:]), "the config does not say how many experts a token has", 0.3)


def _rope(s: Structure, f: Fields, near: list[Peer]) -> list[Question]:
    if s.learned_positions:
        return [Question("rotary positions", "none", (), "positions are learned", 1.0)]
    asked = []
    stated = f.values.get("rope_interleaved")
    if isinstance(stated, bool) or (isinstance(stated, str) and _style(stated) is not None):
        choice = _style(stated)
        shown = f"{f.paths['rope_interleaved'][-1]} = {stated!r}"
        asked.append(Question("rotary positions", choice, _others(choice, ("halves", "pairs")), shown, 1.0))
    else:
        voted = _voted("rotary positions", near, _rope_of, ("halves", "pairs", "none"))
        if any(g.tail in ("wq", "wk") for g in s.groups):
            why = f"{voted.evidence}; but some checkpoints with such names turn neighbours"
            voted = replace(voted, evidence=why, confidence=0.5)
        asked.append(voted)
    if "rope_theta" not in f.values and not (f.plain.get("rope_parameters") or f.plain.get("rope_scaling")):
        voted = _voted("rotary base", near, lambda spec: _theta(spec), (10000.0, 500000.0, 1000000.0, 150000.0))
        asked.append(replace(voted, confidence=min(voted.confidence, 0.6), evidence=f"not stated; {voted.evidence}"))
    return asked


def _style(stated: bool | str) -> str | None:
    if isinstance(stated, bool):
        return "pairs" if stated else "halves"
    text = stated.lower()
    if any(word in text for word in ("interleav", "gptj", "gpt_j", "gpt-j", "pair", "neighbour", "complex")):
        return "pairs"
    return "halves" if any(word in text for word in ("half", "halves", "neox", "rotate_half")) else None


def _rope_of(spec: ModelSpec) -> str:
    rope = getattr(known.attention(spec), "rope", None)
    return "none" if rope is None else "pairs" if rope.interleaved else "halves"


def _theta(spec: ModelSpec) -> float | None:
    rope = getattr(known.attention(spec), "rope", None)
    return None if rope is None else rope.theta


def _norms(s: Structure, f: Fields, near: list[Peer]) -> list[Question]:
    asked = []
    stated = str(f.values.get("norm_kind", "")).lower()
    if s.norm_bias:
        asked.append(Question("kind of norm", "layer", (), "norms have biases", 1.0))
    elif stated:
        kind = "rms" if "rms" in stated else "layer"
        shown = f"{f.paths['norm_kind'][-1]} = {stated!r}"
        asked.append(Question("kind of norm", kind, _others(kind, ("rms", "layer")), shown, 1.0))
    else:
        asked.append(Question("kind of norm", "rms", ("layer",), "norms have no biases", 0.85))
    if "rms_norm_eps" not in f.values:
        asked.append(Question("norm's epsilon", 1e-6, (1e-5,), "not stated; it is a usual one", 0.5))
    if not s.norm_bias:
        asked.append(
            replace(_voted("added to norms' weights", near, lambda spec: spec.norm.offset, (0.0, 1.0)), confidence=0.8)
        )
    if s.qk_norm:
        voted = _voted(
            "norm of queries and keys",
            near,
            lambda spec: "after rotation" if getattr(known.attention(spec), "qk_norm_last", False) else "before it",
            ("before it", "after rotation"),
        )
        asked.append(replace(voted, confidence=max(voted.confidence, 0.5)))
    return asked


def _activation(s: Structure, f: Fields, near: list[Peer]) -> Question | None:
    if not (s.num_experts or s.dense_size):
        return None
    options = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "swigluoai")
    stated = f.values.get("hidden_act")
    special = "swiglu_limit" in f.values or (s.expert_bias and s.gated and s.fused)
    if isinstance(stated, str) and not special:
        choice = ACTIVATIONS.get(stated.lower()) or ("silu" if "swiglu" in stated.lower() else None)
        choice = choice or ("gelu" if "geglu" in stated.lower() else None)
        if choice is not None:
            shown = f"{f.paths['hidden_act'][-1]} = {stated!r}"
            return Question("activation", choice, _others(choice, options), shown, 1.0)
    voted = _voted("activation", near, lambda spec: getattr(known.moe(spec), "activation", None), options)
    if special:
        return replace(voted, evidence=f"{voted.evidence}; experts are clamped, or biased", confidence=0.8)
    return voted


def _layouts(s: Structure, near: list[Peer]) -> list[Question]:
    """How what lies in one tensor lies there, and what is called what."""
    asked = []
    if not s.names_tell_gate:
        why = "names do not tell gate from up; the gate comes first in most checkpoints"
        asked.append(Question("gate and up", "gate first", ("up first",), why, 0.6))
    if s.fused:
        interleaved = s.expert_bias  # where experts are biased and fused, the known ones take turns
        choice = "rows in turn" if interleaved else "gate, then up"
        halves = ("gate, then up", "rows in turn", "up, then gate")
        why = "so it is in known checkpoints with fused experts" + (" and biases" if interleaved else "")
        asked.append(Question("halves of fused experts", choice, _others(choice, halves), why, 0.8))
    if s.packed:
        others = ("by group of heads",)
        asked.append(Question("packed queries, keys and values", "q, k, v", others, "the usual order", 0.6))
    squares = {str(dict(m.options)["square"]) for m in s.matches if "square" in dict(m.options)}
    for part in sorted(squares):
        flipped = s.transposed(part)
        choice = "transposed" if flipped else "as usual"
        why = "all matrices are square, and [outputs, inputs] is usual"
        why = why if flipped is None else "as those are that are not square"
        options = _others(choice, ("as usual", "transposed"))
        asked.append(Question(f"square matrices of {part}", choice, options, why, 0.6 if flipped is None else 0.9))
    return asked


def _window(s: Structure, f: Fields, near: list[Peer]) -> Question | None:
    size = f.values.get("sliding_window")
    if not isinstance(size, int) or isinstance(size, bool) or f.plain.get("layer_types"):
        return None
    if f.values.get("use_window") is False:
        return None
    options = ("all layers", "no layer", "even layers", "odd layers")
    return Question("window", options[0], options[1:], "the config does not say which layers have it", 0.5)


def _heads(s: Structure, f: Fields) -> Question | None:
    if "num_attention_heads" in f.values or s.by_hand or not s.q_size:
        return None
    if s.qk_norm and s.qk_norm_size < s.q_size:
        return Question("head's size", s.qk_norm_size, (), "the size of the norm of queries", 0.95)
    if s.sinks:
        return Question("head's size", s.q_size // s.sinks, (), "each head has one sink", 0.95)
    stated = f.values.get("head_dim")
    if isinstance(stated, int) and stated and not s.q_size % stated:
        return Question("head's size", stated, (), f"{f.paths['head_dim'][-1]} = {stated}", 1.0)
    sizes = [d for d in (64, 128, 32, 96, 256, 16) if s.q_size % d == 0 and s.k_size % d == 0]
    choice = sizes[0] if sizes else s.k_size
    return Question("head's size", choice, tuple(sizes[1:]), "nothing says how many heads there are", 0.3)
