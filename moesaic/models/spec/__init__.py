"""What a model computes, as data: frozen, torch-free, imported by every layer that builds itself from it.

A spec holds no names of tensors or config keys, and no architecture's name. A field enters when an architecture
needs it; a choice has a name rather than a flag.
"""

from moesaic.models.spec.attention import AttentionSpec, GateSpec
from moesaic.models.spec.expert_attention import ExpertAttentionSpec, ExpertPagedAttentionSpec
from moesaic.models.spec.feed_forward import Activation, DenseSpec, MoESpec, RouterSpec, SharedSpec
from moesaic.models.spec.latent import IndexerSpec, LatentAttentionSpec
from moesaic.models.spec.model import LayerSpec, MixerSpec, ModelSpec, Multipliers, NormSpec
from moesaic.models.spec.positions import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    QueryTemperature,
    RopeSpec,
    YarnScaling,
)
from moesaic.models.spec.recurrent import (
    GatedDeltaSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    RecurrentSpec,
    ShortConvSpec,
)

__all__ = [
    "Activation",
    "AttentionSpec",
    "DenseSpec",
    "ExpertAttentionSpec",
    "ExpertPagedAttentionSpec",
    "GateSpec",
    "GatedDeltaSpec",
    "IndexerSpec",
    "LatentAttentionSpec",
    "LayerSpec",
    "LinearAttentionSpec",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "Mamba2Spec",
    "MambaSpec",
    "MixerSpec",
    "MoESpec",
    "ModelSpec",
    "Multipliers",
    "NormSpec",
    "ProportionalScaling",
    "QueryTemperature",
    "RecurrentSpec",
    "RopeSpec",
    "RouterSpec",
    "SharedSpec",
    "ShortConvSpec",
    "YarnScaling",
]
