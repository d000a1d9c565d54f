"""How a drafted `spec` reads the config: every key is read, ignored by name, or refused."""

import builtins
import keyword
from collections.abc import Mapping
from typing import Any

from moesaic.adapt.draft.code import Code, call, comment, keywords, literal, printable
from moesaic.adapt.draft.fields import NEUTRAL, Fields, Path
from moesaic.adapt.draft.questions import Question
from moesaic.adapt.draft.structure import Structure
from moesaic.models import common

USUAL = {  # keys that helpers read from the config by these names, and their types
    "hidden_size": "int", "num_hidden_layers": "int", "num_attention_heads": "int", "num_key_value_heads": "int | None",
    "head_dim": "int | None", "vocab_size": "int", "max_position_embeddings": "int", "rms_norm_eps": "float",
    "rope_theta": "float", "tie_word_embeddings": "bool", "partial_rotary": "float",
}  # fmt: skip
UNNAMED = {"partial_rotary": "partial_rotary_factor"}
LOCALS = [
    "c",
    "attention",
    "moe",
    "dense",
    "layers",
    "layer",
    "sizes",
    "window",
    "first",
    "act",
    "replace",
    "spec",
    "experts",
]
PERIODS = ("freq", "step", "interval", "every", "multiplier", "scale", "scaling", "factor")


class Writer:
    """Writes one spec.

    Attributes:
        open: what of the config is not understood.
        used: names of modules -> what is imported from them.
    """

    def __init__(
        self,
        s: Structure,
        f: Fields,
        told: Mapping[str, tuple[int, str]],
        questions: Mapping[str, Question],
        understood: Mapping[str, str],
    ) -> None:
        """`understood`: keys that a known architecture of this structure reads, and its name."""
        self.s, self.f, self.told, self.questions, self.understood = s, f, told, questions, understood
        self.used: dict[str, set[str]] = {"common": {"decoder", "num_layers"}, "spec": {"LayerSpec", "ModelSpec"}}
        self.open: list[str] = []
        self.body: list[str] = []
        self.read: set[str] = set()
        self.objects: dict[str, str] = {}
        self.pins: list[tuple[Path, Any, str]] = []
        self.ignored: list[tuple[Path, str]] = []

    # What is read, and how

    def choice(self, name: str) -> Any:
        return self.questions[name].choice if name in self.questions else None

    def guess(self, *names: str) -> list[str]:
        """Comments on what was guessed."""
        lines = []
        for name in names:
            q = self.questions.get(name)
            if q is not None and q.settled and q.confidence < 1:
                lines += comment(f"settled: {q.name}: {q.choice}; evidence: {q.evidence}", 4)
            elif q is not None and q.guessed:
                others = f"; or: {'; '.join(map(str, q.others[:3]))}" if q.open and q.others else ""
                text = f"guess: {q.name}: {q.choice}; evidence: {q.evidence} (confidence {q.confidence:.1f}){others}"
                lines += comment(text, 4)
        return lines

    def reader(self, path: Path) -> str:
        """Who reads a key: the config, or an object in it."""
        if len(path) == 1:
            return "c"
        key = path[0]
        if key not in self.objects:
            name = "".join(part for part in key.split("_")[0] if part.isalnum()) or "o"
            taken = {*self.objects.values(), *common.__all__, *LOCALS, *keyword.kwlist, *dir(builtins)}
            good = name.isascii() and name.islower() and name.isidentifier() and name not in taken
            self.objects[key] = name if good else f"keys_{len(self.objects)}"
        return self.objects[key]

    def value(self, name: str, kind: str) -> Code | None:
        """An expression that reads a field from the config; None where that does not state it."""
        if name not in self.f.paths:
            return None
        self.read.add(name)
        path = self.f.paths[name]
        return Code(f"{self.reader(path)}.require({kind}, {literal(path[-1])})")

    def size(self, name: str, size: int) -> Code:
        """The same of a size, or the size itself."""
        return (self.value(name, "int") if self.f.values.get(name) == size else None) or Code(str(size))

    def pin(self, name: str, why: str = "") -> None:
        """Only the value that a field has here is understood."""
        if name in self.f.paths and name not in self.read:
            self.read.add(name)
            self.pins.append((self.f.paths[name], self.f.values[name], why))

    def drop(self, name: str, why: str) -> None:
        """A field changes nothing here."""
        if name in self.f.paths and name not in self.read:
            self.read.add(name)
            self.ignored.append((self.f.paths[name], why))

    # The config's keys

    def inside(self) -> list[str]:
        if not self.f.inside:
            return []
        beside = f"    c.ignore({', '.join(map(literal, self.f.beside))})" if self.f.beside else ""
        inner = f"    c = c.child({literal(self.f.inside)}, metadata=True)"
        return [*([beside] if beside else []), inner]

    def usual_keys(self) -> list[str]:
        """Usual keys that go by other names here, and those that the config does not have."""
        called: dict[str, Any] = {}
        supposed: dict[str, Any] = {}
        lines: list[str] = []
        for name, kind in USUAL.items():
            key = UNNAMED.get(name, name)
            if name in self.f.paths:
                self.read.add(name)
                path = self.f.paths[name]
                if len(path) > 1:
                    supposed[key] = self.value(name, kind)
                elif path[0] != key:
                    called[key] = path[0]
            elif name in self.told:
                supposed[key], shown = self.told[name]
                lines += comment(f"guess: {key}: {self.told[name][0]}; evidence: {shown} (confidence 0.9)", 4)
        lines = call("c.call", keywords(**called), indent=4) * bool(called) + lines
        for key, value, name in self._unstated():
            supposed[key] = value
            lines += self.guess(name) if name else []
        return lines + call("c.suppose", keywords(**supposed), indent=4) * bool(supposed)

    def _unstated(self) -> list[tuple[str, Any, str]]:
        """Usual keys that helpers need, where the config says nothing: (key, value, the question)."""
        found: list[tuple[str, Any, str]] = []
        s, stated = self.s, self.f.values
        head = self.head_size()
        if "num_attention_heads" not in stated and head:
            found.append(("num_attention_heads", s.q_size // head, "head's size"))
        if "head_dim" not in stated and head and s.attention == "gqa":
            heads = stated.get("num_attention_heads") or s.q_size // head
            if s.hidden != heads * head:
                found.append(("head_dim", head, ""))
        if "num_key_value_heads" not in stated and head and s.k_size != s.q_size:
            found.append(("num_key_value_heads", s.k_size // head, ""))
        if "rms_norm_eps" not in stated:
            found.append(("rms_norm_eps", self.choice("norm's epsilon"), "norm's epsilon"))
        if "rope_theta" not in stated and self.choice("rotary base") is not None:
            found.append(("rope_theta", self.choice("rotary base"), "rotary base"))
        if "max_position_embeddings" not in stated:
            found.append(("max_position_embeddings", s.learned_positions or 4096, ""))
        return found

    def head_size(self) -> int:
        """Numbers of a head."""
        heads = self.f.values.get("num_attention_heads")
        if isinstance(heads, int) and heads > 0:
            return self.s.q_size // heads
        return int(self.choice("head's size") or 0)

    def rest(self) -> list[str]:
        """Keys that are ignored, and those of which only the value here is understood."""
        for name in [name for name in self.f.paths if name not in self.read]:
            self.f.doubt(name)
        lines = []
        reasons: dict[tuple[str, str], list[str]] = {}
        for path, why in [*self.f.useless.items(), *self.ignored]:
            reasons.setdefault((self.reader(path), why), []).append(path[-1])
        for (reader, why), keys in reasons.items():
            lines += call(f"{reader}.ignore", map(literal, keys), f"  # {why}", 4)
        for path, value, why in self.pins:
            lines += self._pinned(path, value, why)
        for path, (name, value) in self.f.same.items():
            if value == self.f.values.get(name):
                lines += self._pinned(path, value, f"says the same as {self.f.paths.get(name, (name,))[-1]}")
            else:
                lines += self._unknown(path, value)
        for path, value in self.f.unknown.items():
            lines += self._unknown(path, value)
        return lines

    def _unknown(self, path: Path, value: Any) -> list[str]:
        key = path[-1]
        if key in self.understood:
            return self._pinned(path, value, f"so {self.understood[key]} computes what this does")
        if self._tells_layers(value):
            return self._pinned(path, value, "the layers with and without experts, as the names show them")
        periodic = value == 1 and any(word in key for word in PERIODS)
        if any(value == n and type(value) is type(n) for n in NEUTRAL) or periodic:
            return self._pinned(path, value, "guess: with this value it changes nothing")
        self.open.append(f"{'.'.join(path)} = {literal(value)}: it is not known what it means")
        return self._pinned(path, value, "OPEN: what it means is not known; another value is refused")

    def _tells_layers(self, value: Any) -> bool:
        """A list that parts the layers as the tensors do: those with experts, or without, or a word for each."""
        if not isinstance(value, list) or not value or not self.s.moe_layers:
            return False
        moe = set(self.s.moe_layers)
        dense = [n for n in range(self.s.num_layers) if n not in moe]
        if value in (dense, sorted(moe)):
            return True
        if len(value) != self.s.num_layers or not all(isinstance(word, str) for word in value):
            return False
        words = {n: {word for i, word in enumerate(value) if (i in moe) is n} for n in (True, False)}
        return all(len(found) <= 1 for found in words.values()) and not words[True] & words[False]

    def _pinned(self, path: Path, value: Any, why: str) -> list[str]:
        after = f"  # {printable(why)}" if why else ""
        return call(f"{self.reader(path)}.refuse_unless", [literal(path[-1]), literal(value)], after, 4)
