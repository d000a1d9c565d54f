"""Rotary positions, as configs of transformers 4 and 5 spell them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from moesaic.core.errors import UnsupportedError
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    RopeSpec,
    YarnScaling,
)

DEFAULT_THETA = 10000.0


def rope(
    c: ConfigReader,
    head_dim: int,
    theta: float = DEFAULT_THETA,
    partial: float | None = None,
    interleaved: bool = False,
    reader: ConfigReader | None = None,
) -> RopeSpec:
    """Rotary positions, as transformers 5 spells them (rope_parameters) or 4 (rope_theta and rope_scaling).

    Args:
        theta: of the architecture's config class, for a config that names none.
        partial: likewise the share of a head's numbers that rotate; None where the architecture knows no such thing.
        reader: of the object, where something else is read from it too.
    """
    top_theta = c.read(float, "rope_theta", absent=theta)
    reader = reader or c.child("rope_parameters", "rope_scaling")
    return _rope(c, reader, head_dim, top_theta, partial, interleaved)


def ropes(
    c: ConfigReader,
    head_dim: int | Mapping[str, int],
    thetas: Mapping[str, float | None],
    partial: float | None = None,
) -> dict[str, RopeSpec | None]:
    """Rotary positions of each kind of layer, where rope_parameters has an object for each; None where that is null.

    Args:
        head_dim: of all kinds, or of each.
        thetas: kind of layer -> theta, for a config without rope_parameters; None there for no rotation. Kinds that no
            layer is of may be missing from it.
        partial: as in `rope`.
    """
    r = c.child("rope_parameters")
    dims = {kind: head_dim if isinstance(head_dim, int) else head_dim[kind] for kind in thetas}
    return {kind: _rope_of_kind(c, r, kind, dims[kind], theta, partial) for kind, theta in thetas.items()}


def ropes_as_given(c: ConfigReader, head_dim: int, kinds: Iterable[str], partial: float) -> dict[str, RopeSpec | None]:
    """`ropes` where nothing is taken for granted: rope_parameters must speak of each of these kinds of layers."""
    if c.read(dict | None, "rope_parameters", absent=None) is None:
        raise c.error("rope_parameters", "must say how each kind of layer rotates")
    return ropes(c, head_dim, dict.fromkeys(kinds), partial)


def _rope_of_kind(
    c: ConfigReader, r: ConfigReader, kind: str, head_dim: int, theta: float | None, partial: float | None
) -> RopeSpec | None:
    given = c.read(dict | None, "rope_parameters", absent=None)
    if given is not None and kind not in r:
        raise c.error("rope_parameters", f"says nothing of {kind} layers")
    if (theta if given is None else r.read(dict | None, kind, absent=None)) is None:
        return None
    return _rope(c, r.child(kind), head_dim, theta or DEFAULT_THETA, partial, False)


def _rope(
    c: ConfigReader, r: ConfigReader, head_dim: int, theta: float, partial: float | None, interleaved: bool
) -> RopeSpec:
    """Rotary positions from one object of the config."""
    if r.read(str, "rope_type", "type", absent="default") == "proportional":
        return RopeSpec(theta=r.read(float, "rope_theta", absent=theta), scaling=_proportional(r))
    dim = int(head_dim * _rotating(c, r, partial))
    if dim % 2 or not 0 < dim <= head_dim:
        raise UnsupportedError(f"{c.path}: rotary positions need an even head dimension, or part of it, got {dim}")
    r.ignore("mrope_section", "mrope_interleaved")  # of images: a text's tokens have one position in all sections
    name = r.read(str, "rope_type", "type", absent="default")
    plain = RopeSpec(
        theta=r.read(float, "rope_theta", absent=theta),
        dim=None if dim == head_dim else dim,
        interleaved=interleaved,
    )
    if name == "default":
        return plain
    if name == "dynamic" and "alpha" in r:  # not dynamic at all: one fixed factor on the base
        r.ignore("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        return replace(plain, theta=plain.theta * r.require(float, "alpha") ** (dim / (dim - 2)))
    if name not in _SCALINGS:
        known = ", ".join(["default", *_SCALINGS])
        raise UnsupportedError(f"{c.path}: rope type {name!r} is not supported; known are {known}")
    max_position = c.require(int, "max_position_embeddings")
    scaling = _SCALINGS[name](r, max_position)
    if isinstance(scaling, LongScaling) and len(scaling.factors) != dim // 2:
        raise r.error("short_factor", f"has {len(scaling.factors)} entries for {dim // 2} pairs")
    return replace(plain, scaling=scaling)


def _rotating(c: ConfigReader, r: ConfigReader, absent: float | None) -> float:
    """The share of a head's numbers that rotate."""
    key = "partial_rotary_factor"
    if absent is None:
        c.refuse_unless(key, 1, None)
        r.refuse_unless(key, 1, None)
        return 1.0
    given = r.read(float | None, key, absent=c.read(float | None, key, absent=None))
    return absent if given is None else float(given)


def _proportional(r: ConfigReader) -> ProportionalScaling:
    return ProportionalScaling(
        share=r.read(float, "partial_rotary_factor", absent=1.0), factor=r.read(float, "factor", absent=1.0)
    )


def _linear(r: ConfigReader, max_position: int) -> LinearScaling:
    r.ignore("original_max_position_embeddings")
    return LinearScaling(factor=r.require(float, "factor"))


def _llama3(r: ConfigReader, max_position: int) -> Llama3Scaling:
    return Llama3Scaling(
        factor=r.require(float, "factor"),
        low_freq_factor=r.require(float, "low_freq_factor"),
        high_freq_factor=r.require(float, "high_freq_factor"),
        original_max_position=r.read(int, "original_max_position_embeddings", absent=max_position),
    )


def _yarn(r: ConfigReader, max_position: int) -> YarnScaling:
    original = r.read(int, "original_max_position_embeddings", absent=max_position)
    factor = r.read(float | None, "factor", absent=None) or max_position / original
    mscale = r.read(float | None, "mscale", absent=None)
    mscale_all = r.read(float | None, "mscale_all_dim", absent=None)
    by_default = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor, 1)
    attention_factor = r.read(float | None, "attention_factor", absent=None)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=by_default if attention_factor is None else attention_factor,
        beta_fast=r.read(float | None, "beta_fast", absent=None) or 32.0,
        beta_slow=r.read(float | None, "beta_slow", absent=None) or 1.0,
        truncate=r.read(bool, "truncate", absent=True),
        score_factor=_mscale(factor, mscale_all) ** 2 if mscale_all else 1.0,
    )


def _long(r: ConfigReader, max_position: int) -> LongScaling:
    original = r.require(int, "original_max_position_embeddings")
    factor = r.read(float | None, "factor", absent=None) or max_position / original
    by_default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention_factor = r.read(float | None, "attention_factor", absent=None)
    mscale = r.read(float | None, "short_mscale", absent=None)
    given = attention_factor if mscale is None else mscale
    r.ignore("long_factor", "long_mscale")  # of sequences longer than the original
    factors = r.require(list, "short_factor")
    if not all(isinstance(f, int | float) and f > 0 for f in factors):
        raise r.error("short_factor", "must be numbers above 0")
    return LongScaling(
        factors=tuple(factors),
        attention_factor=by_default if given is None else given,
        original_max_position=original,
    )


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _long, "su": _long}
