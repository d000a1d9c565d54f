"""A config's keys as the fields they mean, checked against what the tensors' shapes say. Torch-free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.adapt.draft.structure import Structure
from moesaic.models.aliases import field_of, useless
from moesaic.models.config_reader import METADATA

Path = tuple[str, ...]
STANDARD = {  # what a usual config calls a field, where it is not called so
    "top_k": "num_experts_per_tok", "expert_size": "moe_intermediate_size", "num_shared": "n_shared_experts",
    "shared_size": "shared_expert_intermediate_size", "first_dense": "first_k_dense_replace",
    "scale": "routed_scaling_factor", "num_groups": "n_group", "top_groups": "topk_group",
    "renormalize": "norm_topk_prob", "scoring": "scoring_func", "window": "sliding_window",
    "use_window": "use_sliding_window", "partial_rotary": "partial_rotary_factor",
}  # fmt: skip
AS_THEY_ARE = {"rope_scaling", "rope_parameters", "layer_types", "quantization_config"}  # objects and lists known here
COUNTS = {  # fields that are whole numbers
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "num_experts", "top_k", "expert_size", "intermediate_size", "num_shared", "shared_size",
    "first_dense", "num_groups", "top_groups", "sliding_window",
}  # fmt: skip
NUMBERS = {
    "rms_norm_eps", "rope_theta", "scale", "partial_rotary", "clip_qkv", "embedding_multiplier", "residual_multiplier",
    "logits_scaling", "attention_multiplier", "logits_softcap", "attention_softcap", "swiglu_limit", "swiglu_alpha",
    "jitter",
}  # fmt: skip
DEAD = {"is_encoder_decoder": False, "add_cross_attention": False}  # what `decoder` itself refuses
NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, "", [], {})


@dataclass
class Fields:
    """What a config states.

    Attributes:
        inside: the object that holds the language model's keys; "" where they stand at the top.
        paths: field -> the key that states it; of one in an object, the object's and its own.
        values: field -> value.
        same: keys that mean a field which another key states, that field, and what they say.
        plain: keys that are known by their usual name alone.
        useless: keys that change nothing, and why.
        unknown: keys that nothing here knows.
    """

    inside: str = ""
    paths: dict[str, Path] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    same: dict[Path, tuple[str, Any]] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    useless: dict[Path, str] = field(default_factory=dict)
    unknown: dict[Path, Any] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def forget(self, name: str, why: str) -> None:
        """What the config says of a field is of no use."""
        if name in self.paths:
            self.useless[self.paths.pop(name)] = why
            del self.values[name]

    def doubt(self, name: str) -> None:
        """What the config says of a field is not what is in the tensors: its key means something else."""
        path = self.paths.pop(name)
        self.unknown[path] = self.values.pop(name)


def read_fields(config: Mapping[str, Any]) -> Fields:
    """The fields that a config states, and what is left of it."""
    f = Fields()
    values = config
    if not any(field_of(key) == "hidden_size" for key in config):
        inner = {k: v for k, v in config.items() if isinstance(v, Mapping) and _is_model(v)}
        if inner:
            f.inside, values = next(iter(inner.items()))
            f.beside = [key for key in config if key not in METADATA and key != f.inside]
    experts = next((v for k, v in values.items() if field_of(k) == "num_experts" and isinstance(v, int)), 0)
    for path, value in _leaves(values):
        key = path[-1]
        name = field_of(key)
        if key in AS_THEY_ARE:
            f.plain[key] = value
        elif (key in METADATA and not (name == "top_k" and isinstance(value, int) and value <= experts)) or key in DEAD:
            continue
        elif name is not None and not _plausible(name, value):
            f.unknown[path] = value
        elif name is not None and name not in f.paths:
            f.paths[name], f.values[name] = path, value
        elif name is not None:
            before = f.paths[name], f.values[name]
            better = value is not None and (before[1] is None or key == STANDARD.get(name, name))
            worse = before if better else (path, value)
            if better:
                f.paths[name], f.values[name] = path, value
            f.same[worse[0]] = name, worse[1]
        elif (why := useless(key)) is not None:
            f.useless[path] = why
        else:
            f.unknown[path] = value
    return f


def _plausible(name: str, value: Any) -> bool:
    """Whether a value is of the kind that its field has."""
    if value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in COUNTS:
        return number and isinstance(value, int) and value >= 0
    return number if name in NUMBERS else True


def _is_model(values: Mapping[str, Any]) -> bool:
    return {"hidden_size", "num_hidden_layers"} <= {field_of(key) for key in values}


def _leaves(values: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key not in AS_THEY_ARE and key not in METADATA and not prefix:
            yield from _leaves(value, (key,))
        else:
            yield (*prefix, key), value


def reconcile(f: Fields, s: Structure) -> dict[str, tuple[int, str]]:
    """Sizes that the config does not state and the shapes tell: field -> (value, what shows it).

    What the config states of a size and the shapes deny is doubted; `Fields` has it as unknown then.
    """
    sizes = {
        "hidden_size": (s.hidden, "the embedding's columns"),
        "vocab_size": (s.vocab, "the embedding's rows"),
        "num_hidden_layers": (s.num_layers, "the layers' numbers"),
        "num_experts": (s.num_experts, "the experts' numbers"),
        "expert_size": (s.expert_size, "the shape of an expert's projections"),
        "intermediate_size": (s.dense_size, "the shape of the dense feed-forward's projections"),
    }
    told: dict[str, tuple[int, str]] = {}
    for name, (size, shown) in sizes.items():
        if not size:
            if name in ("expert_size", "intermediate_size") and name in f.paths:
                _spare_size(f, s, name)
            continue
        if f.values.get(name) == size:
            continue
        other = "intermediate_size" if name == "expert_size" else ""
        if name not in f.paths and other and f.values.get(other) == size and not s.dense_size:
            continue
        if name in f.paths and name in ("expert_size", "intermediate_size"):
            f.doubt(name)
        told[name] = (size, shown)
    return told


def _spare_size(f: Fields, s: Structure, name: str) -> None:
    """A size of a part that the model does not have, unless it stands for the experts'."""
    stands_for = {"intermediate_size": (s.expert_size, "expert_size"), "expert_size": (s.dense_size, "")}[name]
    if stands_for[0] and f.values[name] == stands_for[0] and stands_for[1] not in f.paths:
        return
    f.forget(name, "of layers that this model does not have")
