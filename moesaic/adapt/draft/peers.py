"""What known architectures would compute of this checkpoint; those built like it vote on open questions. Torch-free.

Each known architecture's `spec` reads the config through its own usual keys, whatever words the config has for them;
what it then describes is compared with what the tensors show.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.adapt.draft.structure import Structure
from moesaic.models.aliases import field_of
from moesaic.models.config_reader import ConfigReader
from moesaic.models.registry import ModelRegistry
from moesaic.models.spec import (
    AttentionSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
)

COMMON = {"vocab_size", "jitter", "expert_size", "intermediate_size"}  # stated for many reasons
Trait = Callable[[ModelSpec], Any]


class AliasReader(ConfigReader):
    """A reader that finds a value by the field that its key means; what is not stated is as the architecture has it."""

    def __init__(self, values: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        super().__init__(values, "config.json")
        self._fields = fields

    def _get(self, kind: Any, keys: tuple[str, ...], absent: Any) -> Any:
        named = [key for key in keys if key in self._values]
        for key in keys if not named else ():
            value = self._fields.get(field_of(key) or "")
            if value is not None:
                self._values = {**self._values, key: value}
                break
        return super()._get(kind, keys, absent)

    @property
    def asked(self) -> set[str]:
        """All keys that somebody wanted to know, or to ignore."""
        return {key for reader in self._readers() for key in reader._known}


@dataclass(frozen=True)
class Peer:
    """A known architecture.

    Attributes:
        score: from 0 to 1: in how many traits it is built as the checkpoint is, and how much of the config it reads.
        asked: keys that it reads or ignores.
        differs: the other traits (`sinks: True there, False here`), and fields that it does not know.
    """

    name: str
    score: float
    spec: ModelSpec
    differs: tuple[str, ...]
    asked: frozenset[str]


def peers(s: Structure, fields: Mapping[str, Any], plain: Mapping[str, Any]) -> list[Peer]:
    """The known architectures that can read this config, the most alike first."""
    found = []
    known = {**fields, "num_hidden_layers": s.num_layers, "hidden_size": s.hidden, "vocab_size": s.vocab}
    known["num_experts"] = s.num_experts or fields.get("num_experts")
    known["expert_size"] = s.expert_size or fields.get("expert_size")
    known = {"top_k": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, **known}
    known.setdefault("intermediate_size", s.dense_size or s.expert_size)
    for name in ModelRegistry.get_supported_archs():
        read = _spec_of(name, known, plain)
        if read is None:
            continue
        spec, asked = read
        understood = {field_of(key) for key in asked}
        here, there = _traits(s), {trait: of(spec) for trait, of in TRAITS.items()}
        differs = tuple(f"{t}: {there[t]} there, {here[t]} here" for t in TRAITS if here[t] != there[t])
        strange = tuple(f"{name}: stated here" for name in sorted(fields.keys() - understood - COMMON))
        score = 0.9 * (1 - len(differs) / len(TRAITS)) + 0.1 * (1 - len(strange) / max(1, len(fields)))
        found.append(Peer(name, round(score, 3), spec, differs + strange, asked))
    return sorted(found, key=lambda near: -near.score)


def _spec_of(name: str, fields: Mapping[str, Any], plain: Mapping[str, Any]) -> tuple[ModelSpec, frozenset[str]] | None:
    """What it would compute, and the keys that it reads."""
    reader = AliasReader(plain, fields)
    try:
        architecture = ModelRegistry.resolve({"architectures": [name]})
        spec = None if architecture.spec is None else architecture.spec(reader)
        return None if spec is None else (spec, frozenset(reader.asked))
    except Exception:  # it cannot read this config, in whatever way: it is not near
        return None


def vote(near: list[Peer], trait: Callable[[ModelSpec], Any]) -> tuple[Any, float, str]:
    """What the most alike architectures compute: (the value that most have, their share, what shows it)."""
    best = [n for n in near if n.score > near[0].score - 0.01][:8] if near else []
    values = [(n.name, trait(n.spec)) for n in best]
    if not values:
        return None, 0.0, "no known architecture is built so"
    value, count = Counter(repr(v) for _, v in values).most_common(1)[0]
    chosen = next(v for _, v in values if repr(v) == value)
    names = [name for name, v in values if repr(v) == value]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return chosen, count / len(values), f"as in {names[0]}{others}, built alike"


def layer(spec: ModelSpec) -> LayerSpec:
    """The last layer with experts, or else the last."""
    return next((la for la in reversed(spec.layers) if la.moe is not None), spec.layers[-1])


def attention(spec: ModelSpec) -> Any:
    return layer(spec).attention


def moe(spec: ModelSpec) -> MoESpec | None:
    return layer(spec).moe


def _of_attention(field: str) -> Trait:
    return lambda spec: getattr(attention(spec), field, None)


def _of_moe(field: str) -> Trait:
    return lambda spec: getattr(moe(spec), field, None) if moe(spec) is not None else False


def _of_router(field: str) -> Trait:
    return lambda spec: getattr(getattr(moe(spec), "router", None), field, False)


KINDS = {
    AttentionSpec: "gqa",
    ExpertPagedAttentionSpec: "owned",
    LatentAttentionSpec: "latent",
    ExpertAttentionSpec: "experts' heads",
}
HAND = {"latent attention": "latent", "a sparse indexer": "latent"}
TRAITS: dict[str, Trait] = {
    "attention": lambda spec: KINDS.get(type(attention(spec)), "recurrent"),
    "experts": lambda spec: moe(spec) is not None,
    "norms": lambda spec: layer(spec).norms,
    "norms' biases": lambda spec: spec.norm.bias,
    "bias of queries, keys and values": _of_attention("qkv_bias"),
    "bias of attention's output": _of_attention("output_bias"),
    "norm of queries and keys": _of_attention("qk_norm"),
    "sinks": _of_attention("sinks"),
    "router's bias": _of_router("bias"),
    "correction of the choice": _of_router("correction"),
    "experts' biases": _of_moe("bias"),
    "experts' gates": _of_moe("gated"),
    "shared experts": lambda spec: getattr(moe(spec), "shared", None) is not None,
    "gate of shared experts": lambda spec: bool(getattr(getattr(moe(spec), "shared", None), "gate", False)),
    "bias of logits": lambda spec: spec.logits_bias,
    "learned positions": lambda spec: spec.learned_positions,
    "output gate": lambda spec: getattr(attention(spec), "output_gate", None) is not None,
    "parts beside": lambda spec: bool(
        layer(spec).shortcut or layer(spec).scalar or getattr(moe(spec), "latent_size", 0)
    ),
}


def _traits(s: Structure) -> dict[str, Any]:
    return {
        "attention": HAND.get(s.by_hand[0][0], "recurrent") if s.by_hand else s.attention,
        "experts": bool(s.num_experts),
        "norms": s.norms,
        "norms' biases": s.norm_bias,
        "bias of queries, keys and values": s.qkv_bias,
        "bias of attention's output": s.output_bias,
        "norm of queries and keys": s.qk_norm,
        "sinks": bool(s.sinks),
        "router's bias": s.router_bias,
        "correction of the choice": s.correction,
        "experts' biases": s.expert_bias,
        "experts' gates": s.gated if s.num_experts else False,
        "shared experts": bool(s.shared_size),
        "gate of shared experts": s.shared_gate,
        "bias of logits": s.head_bias,
        "learned positions": bool(s.learned_positions),
        "output gate": False,
        "parts beside": False,
    }
