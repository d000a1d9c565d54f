"""What surrounds the layers, and what differs from layer to layer."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    AttentionSpec,
    LayerSpec,
    LongScaling,
    ModelSpec,
    Multipliers,
    NormSpec,
)

NEUTRAL = Multipliers()


def decoder(
    c: ConfigReader,
    layers: list[LayerSpec],
    multipliers: Multipliers = NEUTRAL,
    norm: NormSpec | None = None,
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    """The model around its layers.

    Args:
        norm: None for an RMS norm with the config's rms_norm_eps.
        tied: whether the output projection is the embedding table, for a config that says nothing.
        more: fields of ModelSpec.
    """
    c.refuse_unless("is_encoder_decoder", False)
    c.refuse_unless("add_cross_attention", False)
    c.ignore("cross_attention_hidden_size", "tie_encoder_decoder")
    return ModelSpec(
        vocab_size=c.require(int, "vocab_size"),
        hidden_size=c.require(int, "hidden_size"),
        max_position_embeddings=min(c.require(int, "max_position_embeddings"), *_limits(layers)),
        norm=norm or NormSpec(eps=c.require(float, "rms_norm_eps")),
        tied_embeddings=c.read(bool, "tie_word_embeddings", absent=tied),
        layers=tuple(layers),
        multipliers=multipliers,
        **more,
    )


def _limits(layers: Iterable[LayerSpec]) -> list[int]:
    """Lengths that the layers' positions are good for, where they say one. At least one number."""
    attentions = [layer.attention for layer in layers if isinstance(layer.attention, AttentionSpec)]
    scalings = [attention.rope.scaling for attention in attentions if attention.rope is not None]
    return [sys.maxsize, *(s.original_max_position for s in scalings if isinstance(s, LongScaling))]


def kinds_of_layers(c: ConfigReader, key: str, known: Sequence[str], absent: Callable[[int], str]) -> list[str]:
    """What each layer is, from a list in the config.

    Args:
        known: the values that are understood.
        absent: layer -> its kind, for a config without the list.
    """
    kinds: list[str] = c.read(list | None, key, absent=None) or [absent(layer) for layer in range(num_layers(c))]
    if len(kinds) != num_layers(c):
        raise c.error(key, f"has {len(kinds)} entries for {num_layers(c)} layers")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedError(f"{c.path}: {unknown_name(f'kind of layer in {key}', str(kind), known)}")
    return kinds


def for_each_layer(c: ConfigReader, key: str, absent: Any) -> list[Any]:
    """A list in the config with an entry for each layer; `absent` for each where there is none."""
    entries: list[Any] = c.read(list | None, key, absent=None) or [absent] * num_layers(c)
    if len(entries) != num_layers(c):
        raise c.error(key, f"has {len(entries)} entries for {num_layers(c)} layers")
    return entries


def windows(c: ConfigReader, window: int | None, sliding: Callable[[int], bool]) -> list[int | None]:
    """Each layer's window: `layer_types`, or, where the config has none, those that `sliding` names have one."""
    return [size for _, size in kinds_and_windows(c, window, sliding)]


def kinds_and_windows(
    c: ConfigReader, window: int | None, sliding: Callable[[int], bool]
) -> list[tuple[str, int | None]]:
    """Each layer's kind, "sliding_attention" or "full_attention", and its window."""
    if window is not None and window < 1:
        raise c.error("sliding_window", "must be at least 1")
    kinds = kinds_of_layers(
        c,
        "layer_types",
        ("sliding_attention", "full_attention"),
        lambda layer: "sliding_attention" if sliding(layer) else "full_attention",
    )
    return [(kind, window if kind == "sliding_attention" else None) for kind in kinds]


def scaled(c: ConfigReader) -> Multipliers:
    """The multipliers of configs that divide the logits."""
    return Multipliers(
        embedding=c.read(float, "embedding_multiplier", absent=1.0),
        residual=c.read(float, "residual_multiplier", absent=1.0),
        logits=1.0 / c.read(float, "logits_scaling", absent=1.0),
    )


def overrides_of_layers(c: ConfigReader, **keys: str) -> list[dict[str, int]] | None:
    """What `per_layer_config` says of each layer; None where the config has none.

    Args:
        keys: what may differ from layer to layer, positive numbers, and what each is called in the result.
    """
    given: dict[str, Any] | None = c.read(dict | None, "per_layer_config", absent=None)
    if given is None:
        return None
    for layer, values in given.items():
        if not (layer.isdecimal() and int(layer) < num_layers(c) and isinstance(values, dict)):
            raise c.error("per_layer_config", f"must map the numbers of {num_layers(c)} layers to objects")
        if unknown := values.keys() - keys.keys():
            raise UnsupportedError(f"{c.path}: {unknown_name('key in per_layer_config', min(unknown), keys)}")
        if any(type(value) is not int or value < 1 for value in values.values()):
            raise c.error("per_layer_config", "must hold positive numbers")
    of_layers = (given.get(str(layer), {}) for layer in range(num_layers(c)))
    return [{keys[key]: value for key, value in values.items()} for values in of_layers]


def num_layers(c: ConfigReader) -> int:
    """How many decoder layers."""
    return int(c.require(int, "num_hidden_layers"))
