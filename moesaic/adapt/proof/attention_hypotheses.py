"""Hypotheses about attention: what a config or a draft may say wrong of rope, windows, norms and biases."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from moesaic.adapt.proof.changes import mixers_with, respec, respec_in, set_to, zeroed
from moesaic.adapt.proof.hypotheses import Hypothesis
from moesaic.layers.rope import shared_frequencies
from moesaic.models.decoder import Decoder

THETAS = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)


def of_positions(model: Decoder) -> Iterator[Hypothesis]:
    """What may be wrong with rope."""
    turned = [m for m in mixers_with(model, "rope") if m.spec.rope is not None]
    if not turned:
        return
    rope = turned[0].spec.rope
    kinds = ("halves", "neighbours") if rope.interleaved else ("neighbours", "halves")
    yield Hypothesis(
        "positions",
        f"rope that turns pairs of {kinds[0]} (the spec says {kinds[1]})",
        f"RopeSpec(interleaved={not rope.interleaved})",
        lambda model: respec(turned, lambda s: replace(s, rope=replace(s.rope, interleaved=not s.rope.interleaved))),
    )
    for theta in (t for t in THETAS if t != rope.theta):
        yield _turned(turned, f"rope_theta {theta:g} (the spec says {rope.theta:g})", "rope_theta", theta=theta)
    if rope.scaling is not None:
        yield _turned(turned, "rope that is not scaled", "rope_scaling / rope_parameters", scaling=None)
    yield Hypothesis(
        "positions",
        "no rope at all",
        "AttentionSpec(rope=None)",
        lambda model: respec(turned, lambda s: replace(s, rope=None)),
    )


def _turned(mixers: Sequence[Any], what: str, key: str, **changes: Any) -> Hypothesis:
    def change(model: Decoder) -> AbstractContextManager[None]:
        targets = []
        for mixer in mixers:
            spec = replace(mixer.spec.rope, **changes)
            dim = mixer.inverse_frequencies.shape[0] * 2
            inverse, factor = shared_frequencies(spec, dim, mixer.inverse_frequencies.device)
            targets += [(mixer, "inverse_frequencies", inverse), (mixer, "rope_factor", factor)]
        return set_to(targets)

    return Hypothesis("positions", what, f"{key} in config.json", change)


def of_attention(model: Decoder, windows: Sequence[int]) -> Iterator[Hypothesis]:
    """What may be wrong with plain attention; `windows` as for `spec_hypotheses.of_spec`."""
    plain = mixers_with(model, "window", "qk_norm", "softcap")
    if not plain:
        return

    def ask(what: str, advice: str, fits: Callable[[Any], bool], of: Callable[[Any], Any]) -> Iterator[Hypothesis]:
        chosen = [m for m in plain if fits(m.spec)]
        if chosen:
            yield Hypothesis("attention", what, advice, lambda model: respec(chosen, of))

    yield from ask(
        "no norm of queries and keys",
        "qk_norm=None",
        lambda s: s.qk_norm is not None,
        lambda s: replace(s, qk_norm=None),
    )
    yield from ask(
        "queries and keys normed on the other side of rope",
        "qk_norm_last",
        lambda s: s.qk_norm is not None and s.rope is not None,
        lambda s: replace(s, qk_norm_last=not s.qk_norm_last),
    )
    yield from ask(
        "scores scaled by 1 / sqrt(head_dim)",
        "AttentionSpec(scale)",
        lambda s: abs(s.scale - s.head_dim**-0.5) > 1e-9,
        lambda s: replace(s, scale=s.head_dim**-0.5),
    )
    yield from ask(
        "scores not scaled", "AttentionSpec(scale)", lambda s: s.scale != 1.0, lambda s: replace(s, scale=1.0)
    )
    yield from ask("no window", "sliding_window", lambda s: s.window is not None, lambda s: replace(s, window=None))
    for window in windows:
        yield Hypothesis(
            "attention",
            f"a window of {window} tokens",
            f"sliding_window: {window}",
            partial(respec_in, plain, window=window),
        )
    yield from ask(
        "no softcap of scores", "softcap", lambda s: s.softcap is not None, lambda s: replace(s, softcap=None)
    )
    yield from ask("no clipping", "clip_qkv", lambda s: s.clip_qkv is not None, lambda s: replace(s, clip_qkv=None))
    biases = [m.qkv.bias for m in plain if m.qkv.bias is not None]
    if biases:
        yield Hypothesis("attention", "biases of q, k and v ignored", "qkv_bias", lambda model: zeroed(biases))
    outputs = [m.o.bias for m in plain if m.o.bias is not None]
    if outputs:
        yield Hypothesis("attention", "bias of o ignored", "output_bias", lambda model: zeroed(outputs))
    sinks = [m for m in plain if m.sinks is not None]
    if sinks:
        yield Hypothesis(
            "attention", "no sinks", "sinks=False", lambda model: set_to([(mixer, "sinks", None) for mixer in sinks])
        )
