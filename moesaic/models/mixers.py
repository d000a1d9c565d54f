"""What mixes tokens in a layer: which class computes which spec.

A mixer is built as `Mixer(ctx, spec, hidden_size, norm)`, keeps what `cache_specs` lists (in this order) and is called
as `mixer(hidden, step, *caches)`: `[T, hidden]` -> `[T, hidden]`.
"""

from typing import Any

from moesaic.experts.attention import ExpertAttention, ExpertPagedAttention
from moesaic.layers.attention import GroupedQueryAttention
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.gated_delta import GatedDelta
from moesaic.layers.latent_attention import LatentAttention
from moesaic.layers.linear_attention import LinearAttention
from moesaic.layers.mamba import Mamba
from moesaic.layers.mamba2 import Mamba2
from moesaic.layers.short_conv import ShortConv
from moesaic.models.spec import (
    AttentionSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MixerSpec,
    NormSpec,
    ShortConvSpec,
)

MIXERS: dict[type[Any], type[Any]] = {
    AttentionSpec: GroupedQueryAttention,
    ExpertAttentionSpec: ExpertAttention,
    ExpertPagedAttentionSpec: ExpertPagedAttention,
    LatentAttentionSpec: LatentAttention,
    GatedDeltaSpec: GatedDelta,
    LinearAttentionSpec: LinearAttention,
    Mamba2Spec: Mamba2,
    MambaSpec: Mamba,
    ShortConvSpec: ShortConv,
}


def build_mixer(ctx: BuildContext, spec: MixerSpec, hidden_size: int, norm: NormSpec) -> Layer:
    """The layer that computes `spec`.

    Args:
        norm: the model's kind, for norms inside of the mixer.
    """
    mixer: Layer = MIXERS[type(spec)](ctx, spec, hidden_size, norm)
    return mixer
